"""Any timm model as a vision encoder."""

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from encoders.encoder import Encoder, register_encoder
from quant.checks import check_above, check_at_least


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
        model_arguments: further timm arguments, such as img_size and patch_size of a ViT.
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
        check_timm_model(model_name)
        check_at_least(1, in_channels=in_channels)
        check_at_least(-math.inf, mean=mean)
        check_above(0, std=std)
        self.arguments = {
            "model_name": model_name,
            "in_channels": in_channels,
            "small_images": small_images,
            "mean": mean,
            "std": std,
            "model_arguments": dict(model_arguments or {}),
        }
        self.model = timm.create_model(model_name, num_classes=0, in_chans=in_channels, **(model_arguments or {}))
        if small_images:
            _shrink_stem(self.model, model_name, in_channels)
        self.feature_dim = int(self.model.num_features)  # type: ignore[arg-type]
        self.front_end = PixelNormalization(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (batch, channels, height, width) to pooled features (batch, feature_dim)."""
        if images.is_cuda:  # tensor cores want it; convolutions follow their input
            images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.model(images)
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


def check_timm_model(name: str) -> None:
    """Raise ValueError, with close names, where timm has no such model."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {name!r}; close names: {', '.join(close) or 'none'}")


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
