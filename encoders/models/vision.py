"""Any timm model as a vision encoder."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from encoders.base import Encoder, register_encoder
from encoders.storage.arguments import check_plain
from encoders.storage.description import ArtifactError, sentence
from quant.checks import check_above, check_at_least

# Arguments by which timm reads weights from somewhere: for one's own call, never from a saved description.
READING = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})
# What timm's functions for families of EfficientNets and MobileNets scale their stages by, before the class is built.
SCALING = frozenset({"channel_multiplier", "depth_multiplier", "group_size"})
# The encoder, or whoever runs it, says these itself.
OWN = frozenset({"self", "num_classes", "in_chans", "device", "dtype"})


@register_encoder("vision")
class VisionEncoder(Encoder):
    """A timm model without its classifier: images to pooled features.

    Args:
        model_name: any of `timm.list_models()`: resnet18, vit_tiny_patch16_224, mobilenetv3_small_100, ...
        in_channels: 3 for colour, 1 for grey.
        small_images: for ResNets on 32x32 or smaller: a 3x3 stem of stride 1 without max-pooling,
            as SSQL's CIFAR recipe has it.
        mean: mean of the pixels in [0, 1], subtracted from all channels.
        std: standard deviation of the pixels, divides all channels.
        model_arguments: further arguments of the model's own class, such as img_size and patch_size of a ViT; or
            `pretrained` and the like for timm's weights, which are not part of the saved description.

    Raises:
        ValueError: an unknown model, an argument that it does not take, or sizes that no image has.
    """

    modality = "image"

    def __init__(
        self,
        model_name: str = "resnet18",
        in_channels: int = 3,
        small_images: bool = False,
        mean: float = 0.45,
        std: float = 0.225,
        model_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arguments["model_arguments"] = described_arguments(model_name, model_arguments or {})
        check_at_least(1, in_channels=in_channels)
        check_at_least(-math.inf, mean=mean)
        check_above(0, std=std)
        with built_by_timm(model_name, model_arguments or {}):
            self.model = timm.create_model(model_name, num_classes=0, in_chans=in_channels, **(model_arguments or {}))
        if small_images:
            _shrink_stem(self.model, model_name, in_channels)
        self.feature_dim = int(self.model.num_features)  # type: ignore[arg-type]
        self.front_end = PixelNormalization(mean, std)

    @property
    def stages(self) -> list[nn.Module]:
        """The blocks of a vision transformer."""
        return list(self.model.blocks) if isinstance(self.model, VisionTransformer) else []

    @classmethod
    def check_description(cls, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError where a saved description would have timm read or run something."""
        check_timm_description(arguments)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (batch, channels, height, width) to pooled features (batch, feature_dim).

        Raises:
            ValueError: another number of channels, or a size that the model is not built for.
        """
        name, channels = self.arguments["model_name"], self.arguments["in_channels"]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)} do not fit: {name} takes (batch, {channels}, height, width); "
                f"its in_channels is {channels}"
            )
        if images.is_cuda:  # tensor cores want it; convolutions follow their input
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            features: Tensor = self.model(images)
        except AssertionError as error:  # timm's word on images that a model is not built for
            height, width = images.shape[2:]
            raise ValueError(
                f"images of {height}x{width} do not fit {name}: {str(error).rstrip('.')}; give data of the "
                f"size that it is built for (ImageFolder's image_size), or build the encoder with model_arguments "
                f"{{img_size: {height}}} and a patch_size that divides it"
            ) from error
        except AttributeError as error:  # a model of fewer stages than its class goes through
            given = self.arguments["model_arguments"]
            if not given:
                raise
            raise ValueError(f"{name} does not run with model_arguments {json.dumps(given)}: {error}") from error
        return features

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The pooled features; `lengths` is there for the common signature and ignored."""
        features: Tensor = self(inputs)
        return features

    def pool(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The features as they are: the model has pooled them."""
        return features


class PixelNormalization(nn.Module):
    """(pixels - mean) / std, the same for every channel."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, images: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images (batch, channels, height, width) in [0, 1]; lengths are passed on."""
        return (images - self.mean) / self.std, lengths


@contextmanager
def built_by_timm(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Whatever fails while timm builds a model of these arguments is said to be about them.

    Raises:
        ValueError: in place of an error about values; what is missing, or read from elsewhere, says so itself.
    """
    try:
        yield
    except Exception as error:
        described = {key: value for key, value in arguments.items() if key not in READING}
        ours = isinstance(error, ArtifactError | ImportError | MemoryError | OSError | NotImplementedError)
        if ours or not described or "meta" in str(error):  # some models need numbers: see `check_architecture`
            raise
        why = sentence(error)
        raise ValueError(
            f"{name} cannot be built with model_arguments {json.dumps(described, default=str)}"
            f"{f': {why}' if why else ', a value does not fit'}"
        ) from error


def described_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that describe a timm model: all but those by which it reads weights.

    Raises:
        ValueError: an unknown model, an argument that its class does not take, or a rate of dropout that is none.
    """
    if not timm.is_model(name) or set(name) & set(":/\\"):  # names of hubs and folders are none
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {name!r}; close names: {', '.join(close) or 'none'}")
    unknown = sorted(arguments.keys() - READING - SCALING - _class_arguments(name)) if arguments else []
    if unknown:
        raise ValueError(
            f"model_arguments has {unknown[0]!r}, which {name} does not take; it takes: "
            f"{', '.join(sorted(_class_arguments(name)))}"
        )
    for key, value in arguments.items():
        share = isinstance(value, int | float) and 0 <= value < 1
        if value is not None and not share and key.endswith(("drop_rate", "drop_path_rate")):  # first seen in training
            raise ValueError(f"model_arguments: {key} must be a number from 0 to below 1, not {value!r:.60}")
    return {key: value for key, value in arguments.items() if key not in READING}


def check_timm_description(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where saved `model_arguments` are no plain values, or would have timm read weights."""
    model_arguments = arguments.get("model_arguments") or {}
    reading = sorted(READING & model_arguments.keys())
    if reading:
        raise ValueError(
            f"model_arguments has {reading[0]!r}, by which timm would read weights: an encoder's own are beside it; "
            "take the key out"
        )
    check_plain(model_arguments, "model_arguments")


@cache
def _class_arguments(name: str) -> frozenset[str]:
    """What the constructor of a timm model's class takes, less what the encoder says itself."""
    with torch.device("meta"):  # nothing is allocated
        model = timm.create_model(name, num_classes=0)
    parameters = inspect.signature(type(model).__init__).parameters.values()
    return frozenset(it.name for it in parameters if it.kind is not it.VAR_KEYWORD) - OWN - READING


def _shrink_stem(model: nn.Module, model_name: str, in_channels: int) -> None:
    conv1 = getattr(model, "conv1", None)
    if not isinstance(conv1, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise ValueError(
            f"small_images knows ResNets only, not {model_name!r}; "
            "give the model its own arguments, such as model_arguments={'img_size': 32, 'patch_size': 4}"
        )
    stem = nn.Conv2d(in_channels, conv1.out_channels, 3, padding=1, bias=False)
    torch.nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
