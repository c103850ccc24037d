"""What an exported encoder takes and gives: names, dynamic axes, example inputs."""

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from encoders import Encoder, FilledLogMel, Head, LogMel, Tokenizer
from encoders.speech.log_mel import HOP
from export.graph.head import output_name
from export.graph.tokenizer import OUTPUTS
from quant.checks import check_choice

SpeechInput = Literal["log_mel", "waveform"]
Module = TypeVar("Module", bound=nn.Module)
Axes = dict[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class Signature:
    """Names of a file's inputs and outputs, and the names of their dynamic axes (None: fixed)."""

    inputs: Axes
    outputs: Axes


def input_form(encoder: Encoder, asked: SpeechInput | None) -> str:
    """What a file's first input is: `log_mel` or `waveform` (speech), `images`.

    Args:
        encoder: speech or vision.
        asked: None takes log_mel where the encoder does.

    Raises:
        ValueError: unknown, or an input that the encoder cannot have.
    """
    if asked is not None:
        check_choice("input", asked, get_args(SpeechInput))
    if encoder.modality != "audio":
        possible = ["images"]
    elif isinstance(encoder.front_end, LogMel):
        possible = ["log_mel", "waveform"]
    else:
        possible = ["waveform"]
    form = asked or possible[0]
    if form not in possible:
        raise ValueError(f"a {encoder.name} encoder has no input {form!r}: it takes {' or '.join(possible)}")
    return form


def signature(
    form: str, head: Head | None = None, tokenizer: Tokenizer | None = None, frames: int | None = None
) -> Signature:
    """The signature of files whose first input is `log_mel`, `waveform` or `images`.

    Args:
        form: which of them.
        head: in the file.
        tokenizer: in the file.
        frames: that all log-mels have; None where they may have any number.
    """
    if form == "images":
        inputs: Axes = {"images": ("batch", None, None, None)}
        outputs: Axes = {"features": ("batch", None)}
    else:
        first: tuple[str | None, ...] = (
            ("batch", "samples") if form == "waveform" else ("batch", None, None if frames else "frames")
        )
        inputs = {form: first, "lengths": ("batch",)}
        outputs = {"features": ("batch", "feature_frames", None), "feature_lengths": ("batch",)}
    if head is not None:
        axes: tuple[str | None, ...] = ("batch", "feature_frames", None) if head.task == "ctc" else ("batch", None)
        outputs[output_name(head)] = axes
    if tokenizer is not None:
        for name in OUTPUTS:
            outputs[name] = ("batch",) if name.endswith("lengths") else ("batch", name.replace("tokens", "frames"))
    return Signature(inputs, outputs)


def filled_frames(encoder: Encoder) -> int | None:
    """Mel frames that every clip of an encoder is filled to; None where clips have frames of their own number."""
    front_end = encoder.front_end
    if not isinstance(front_end, FilledLogMel) or front_end.margin is not None:
        return None
    return front_end.samples // HOP


def example_inputs(encoder: Encoder, form: str, image_size: int | tuple[int, int] | None = None) -> tuple[Tensor, ...]:
    """Small inputs for tracing. Batch 2: the tracer takes an axis of 0 or 1 for a constant.

    Args:
        encoder: speech or vision.
        form: `log_mel`, `waveform` or `images`.
        image_size: height and width in pixels, one number or two; the model's own when None.

    Returns:
        log_mel (2, n_mels, 64), of filled clips all frames, or waveform (2, 8000), and lengths (2,); or images (2,
        channels, height, width).
    """
    if form == "waveform":
        return torch.randn(2, 8000), torch.tensor([8000, 6000])
    if form == "log_mel":
        frames = filled_frames(encoder) or 64
        return torch.randn(2, int(encoder.arguments["n_mels"]), frames), torch.tensor([frames, frames * 3 // 4])
    size = image_size or _image_size(encoder)
    height, width = (size, size) if isinstance(size, int) else size
    return (torch.randn(2, encoder.arguments["in_channels"], height, width),)


def frozen_copy(module: Module) -> Module:
    """A float32 copy on the CPU in evaluation mode, so that the module itself is left untouched.

    Weights that are float32 on the CPU already are shared, not copied: nothing in here writes to them.
    """
    weights = {
        id(weight): nn.Parameter(weight.detach().cpu().float(), requires_grad=False) for weight in module.parameters()
    }
    return copy.deepcopy(module, weights).cpu().float().eval().requires_grad_(False)


def _image_size(encoder: Encoder) -> tuple[int, int]:
    arguments = encoder.arguments
    size = arguments["model_arguments"].get("img_size") or (32 if arguments["small_images"] else None)
    if size is None:
        own = getattr(encoder.model, "pretrained_cfg", {}).get("input_size")
        size = own[1:] if own else 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
