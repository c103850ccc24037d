"""Conformer over log-mels: torchaudio's layers behind a convolutional stem, 25 Hz."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models import Conformer as Torchaudio
from torchaudio.models.conformer import ConformerLayer

from encoders.base import register_encoder
from encoders.models.attention import MaskedAttention, separated
from encoders.speech.frames import BlockEncoder, checked_log_mel, frame_mask
from encoders.speech.log_mel import HOP, SAMPLE_RATE, LogMel
from quant.checks import check_at_least


@register_encoder("conformer")
class Conformer(BlockEncoder):
    """Log-mel frames to features (Gulati et al. 2020): two convolutions of stride 2, then Conformer blocks.

    The blocks are torchaudio's, without dropout. Their depthwise convolutions tell positions; they, attention and,
    in training, batch norm see a clip's own frames only.

    Args:
        n_mels: mel bands, 80 or 128.
        width: features of a frame; 144, 256 and 512 are published.
        depth: number of blocks; 16 and 17 are published.
        heads: attention heads; divides width.
        kernel: frames of the depthwise convolutions, odd; 31 is published (of 40 ms each).

    Raises:
        ValueError: a size below 1, or sizes that do not go together.
    """

    front_end: LogMel
    frame_rate = block_rate = SAMPLE_RATE / HOP / 4

    def __init__(self, n_mels: int = 80, width: int = 144, depth: int = 4, heads: int = 4, kernel: int = 31) -> None:
        super().__init__()
        check_at_least(1, width=width, depth=depth, heads=heads, kernel=kernel)
        if width % heads or kernel % 2 == 0:
            raise ValueError(f"width {width} must be divisible by heads {heads}, and kernel {kernel} must be odd")
        self.feature_dim = self.block_width = width
        self.front_end = LogMel(n_mels)
        self.conv1 = nn.Conv1d(n_mels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        layers = Torchaudio(width, heads, 4 * width, depth, kernel).conformer_layers
        self.blocks = nn.ModuleList(Block(layer) for layer in layers)

    def forward(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features.

        Args:
            log_mel: shape (batch, n_mels, frames), 100 Hz.
            lengths: frames of each clip, shape (batch,); all of them when None.

        Returns:
            features, shape (batch, frames / 4, width), zero beyond each clip's length, at 25 Hz; frames of each clip,
            shape (batch,).

        Raises:
            ValueError: another number of mel bands.
        """
        x, lengths = self._stem(log_mel, lengths)
        return self.through_blocks(x, lengths) * frame_mask(lengths, x.shape[1]).unsqueeze(2), lengths

    def _stem(self, log_mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames at 25 Hz, (batch, frames / 4, width), and how many each clip has."""
        x, lengths = checked_log_mel(log_mel, lengths, self.arguments["n_mels"])
        for conv in (self.conv1, self.conv2):
            x = F.silu(conv(x * frame_mask(lengths, x.shape[2]).unsqueeze(1)))
            lengths = (lengths + 1) // 2
        return x.transpose(1, 2), lengths


class Block(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step; torchaudio's layers and names."""

    def __init__(self, layer: ConformerLayer) -> None:
        super().__init__()
        self.ffn1 = layer.ffn1
        self.self_attn_layer_norm = layer.self_attn_layer_norm
        self.self_attn = MaskedAttention(separated(layer.self_attn))
        self.conv_module = layer.conv_module
        self.ffn2 = layer.ffn2
        self.final_layer_norm = layer.final_layer_norm

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: shape (batch, time, width); mask: (batch, time), True where a frame is real."""
        x = x + self.ffn1(x) / 2
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask[:, None, None, :])[0]
        x = x + self._convolution(x, mask)
        x = x + self.ffn2(x) / 2
        out: Tensor = self.final_layer_norm(x)
        return out

    def _convolution(self, x: Tensor, mask: Tensor) -> Tensor:
        pointwise, gate, depthwise, norm, activation, last, _ = self.conv_module.sequential
        y = self.conv_module.layer_norm(x).transpose(1, 2)  # (batch, width, time)
        y = depthwise(gate(pointwise(y)) * mask.unsqueeze(1))
        y = last(activation(norm_of_real_frames(norm, y, mask)))
        return y.transpose(1, 2)


def norm_of_real_frames(norm: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Batch norm whose statistics, in training, are those of the real frames.

    Args:
        norm: over the channels.
        x: shape (batch, channels, time).
        mask: bool, shape (batch, time), True where a frame is real.
    """
    if not norm.training:
        out: Tensor = norm(x)
        return out
    frames = x.transpose(1, 2)
    real = norm(frames[mask])
    normalized = torch.zeros_like(frames, dtype=real.dtype)
    normalized[mask] = real
    return normalized.transpose(1, 2)
