"""Small convolutional networks over log-mels: any plain timm model, for targets as small as microcontrollers."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from encoders.base import register_encoder
from encoders.models.real_frames import mask_time, only_real_frames
from encoders.models.vision import built_by_timm, check_timm_description, described_arguments
from encoders.speech.frames import FrameEncoder, checked_log_mel, frame_mask
from encoders.speech.log_mel import HOP, SAMPLE_RATE, LogMel


@register_encoder("mel_cnn")
class MelCNN(FrameEncoder):
    """A timm model that sees a log-mel as a picture, and keeps its time: features of frames, not of the whole.

    Once time is as coarse as `time_stride`, later strides halve the mel axis only; what is left of it is averaged.
    Convolutions and squeeze-and-excitation see a clip's own frames only. (In training, batch norms see the padding.)

    Args:
        model_name: mobilenetv2_050, efficientnet_lite0, mobilenetv3_small_050, mobilenetv4_conv_small_050,
            resnet18, ...: models of plain convolutions with batch norm.
        n_mels: mel bands, 80 or 128.
        time_stride: 1, 2, 4, 8, 16 or 32 mel frames a feature; 4 is 25 Hz.
        model_arguments: further arguments of the model's own class, such as channels of a ResNet; or `pretrained` and
            the like for timm's weights, which are not part of the saved description.

    Raises:
        ValueError: an unknown model, or one whose features depend on padding.
    """

    front_end: LogMel

    def __init__(
        self,
        model_name: str = "mobilenetv2_050",
        n_mels: int = 80,
        time_stride: int = 4,
        model_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arguments["model_arguments"] = described_arguments(model_name, model_arguments or {})
        if time_stride not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"time_stride must be 1, 2, 4, 8, 16 or 32, got {time_stride}")
        self.time_stride = time_stride
        self.frame_rate = SAMPLE_RATE / HOP / time_stride
        self.front_end = LogMel(n_mels)
        with built_by_timm(model_name, model_arguments or {}):
            self.model = timm.create_model(
                model_name, num_classes=0, global_pool="", in_chans=1, **(model_arguments or {})
            ).train()
        try:
            self.feature_dim = mask_time(self.model, torch.zeros(1, 1, n_mels, 64), time_stride)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"{model_name!r} cannot see pictures of {n_mels} mels: {error}") from error
        except (AttributeError, LookupError, TypeError) as error:  # built, and not whole
            raise ValueError(f"{model_name!r} cannot run: a value of its model_arguments does not fit") from error
        self._check_frames()

    @classmethod
    def check_description(cls, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError where a saved description would have timm read or run something."""
        check_timm_description(arguments)

    def forward(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features.

        Args:
            log_mel: shape (batch, n_mels, frames), 100 Hz.
            lengths: frames of each clip, shape (batch,); all of them when None.

        Returns:
            features, shape (batch, frames / time_stride, feature_dim), zero beyond each clip's length; frames of each
            clip, shape (batch,).

        Raises:
            ValueError: another number of mel bands.
        """
        given = lengths
        log_mel, lengths = checked_log_mel(log_mel, lengths, self.arguments["n_mels"])
        with only_real_frames(given):
            features = self.model(log_mel.unsqueeze(1)).mean(dim=2).transpose(1, 2)
        lengths = (lengths + self.time_stride - 1) // self.time_stride
        return features * frame_mask(lengths, features.shape[1]).unsqueeze(2), lengths

    @torch.no_grad()
    def _check_frames(self) -> None:
        """Whether a clip alone has the features it has with padding: some models have layers of their own kind."""
        if next(self.parameters()).is_meta:
            return
        training = self.training
        self.eval()
        log_mel = torch.randn(1, self.arguments["n_mels"], 64, generator=torch.Generator().manual_seed(0))
        alone, _ = self(log_mel[..., :33])
        padded, lengths = self(log_mel, torch.tensor([33]))
        self.train(training)
        padded = padded[:, : alone.shape[1]]
        if alone.shape[1] != lengths[0] or not torch.allclose(padded, alone, atol=1e-3 * float(alone.abs().max())):
            raise ValueError(
                f"features of {self.arguments['model_name']!r} depend on padding, or are not one in {self.time_stride} "
                "mel frames: choose a model of plain convolutions, such as mobilenetv2_050, efficientnet_lite0, "
                "mobilenetv3_small_050 or resnet18"
            )
