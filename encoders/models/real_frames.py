"""Convolutions over (mels, time) that see a clip's own frames only, whatever it is batched with."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from encoders.speech.frames import frame_mask
from quant import valid_frames

_LENGTHS: ContextVar[Tensor | None] = ContextVar("lengths", default=None)
_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@contextmanager
def only_real_frames(lengths: Tensor | None) -> Iterator[None]:
    """Inside, layers that `mask_time` has changed see nothing beyond these lengths, in input frames (batch,).

    Nothing is masked where they are None: every frame is real.
    """
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def mask_time(model: nn.Module, picture: Tensor, time_stride: int) -> int:
    """Limit a model's stride over time, and make its layers see real frames only, in place.

    Args:
        model: of Conv2d, pooling and squeeze-and-excitation on (batch, channels, mels, time).
        picture: an example input.
        time_stride: most that time is strided by; further strides become strides of the mel axis alone.

    Returns:
        channels of its output.
    """
    strides: dict[str, int] = {}
    watched = {name: m for name, m in model.named_modules() if isinstance(m, (*_STRIDED, SqueezeExcite))}

    def before(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        strides[name] = picture.shape[-1] // inputs[0].shape[-1]
        if strides[name] >= time_stride:
            _keep_time(module)

    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in watched.items()]
    training = model.training
    with torch.no_grad():
        output = model.eval()(picture)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for name, stride in strides.items():
        parent, _, child = name.rpartition(".")
        if isinstance(watched[name], SqueezeExcite):
            watched[name].__class__ = RealFramesSqueezeExcite
            watched[name].time_stride = stride  # type: ignore[assignment]
        else:
            setattr(model.get_submodule(parent), child, RealFrames(watched[name], stride))
    return int(output.shape[1])


class RealFrames(nn.Module):
    """A layer over (batch, channels, mels, time), with zeros beyond each clip's length where it looks at neighbours.

    Args:
        layer: convolution or pooling.
        time_stride: input frames of the model for each frame that the layer sees.
    """

    def __init__(self, layer: nn.Module, time_stride: int) -> None:
        super().__init__()
        self.layer, self.time_stride = layer, time_stride
        self.looks_around = _pair(layer.kernel_size)[1] > 1  # type: ignore[arg-type]
        layer.frames_axis = 3  # type: ignore[assignment]  # for the observers of its quantized form

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, mels, time)."""
        mask = _mask(x, self.time_stride)
        if mask is not None and self.looks_around:
            x = x * mask[:, None, None, :]
        with valid_frames(mask):
            out: Tensor = self.layer(x)
        return out


class RealFramesSqueezeExcite(SqueezeExcite):
    """timm's squeeze-and-excitation, its mean taken over each clip's own frames."""

    time_stride: int

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, mels, time)."""
        mask = _mask(x, self.time_stride)
        if mask is None:
            mean = x.mean((2, 3), keepdim=True)
        else:
            count = mask.sum(dim=1).clamp_min(1) * x.shape[2]
            mean = (x * mask[:, None, None, :]).sum((2, 3), keepdim=True) / count[:, None, None, None]
        gate: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))
        return x * gate


def _mask(x: Tensor, time_stride: int) -> Tensor | None:
    lengths = _LENGTHS.get()
    if lengths is None:
        return None
    return frame_mask((lengths + time_stride - 1) // time_stride, x.shape[-1])


def _keep_time(layer: nn.Module) -> None:
    """Stride of the mel axis alone; a pooling without overlap pools that axis alone."""
    if not isinstance(layer, _STRIDED):
        return
    stride, kernel = _pair(layer.stride), _pair(layer.kernel_size)  # type: ignore[arg-type]
    if isinstance(layer, nn.AvgPool2d) and kernel == stride:
        layer.kernel_size = (kernel[0], 1)
    layer.stride = (stride[0], 1)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
