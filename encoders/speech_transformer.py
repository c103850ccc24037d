"""Speech transformer of the Whisper / Step-Audio shape: conv stem, pre-norm blocks, 50, 25 or 12.5 Hz."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.encoder import Encoder, register_encoder
from encoders.log_mel import HOP, SAMPLE_RATE, LogMel
from quant import AttentionProducts, valid_frames

MEL_RATE = SAMPLE_RATE / HOP  # 100 Hz


@register_encoder("speech_transformer")
class SpeechTransformer(Encoder):
    """Log-mel frames to features: two convolutions, the second with stride 2, then pre-norm blocks.

    Layer names follow the Step-Audio 2 encoder (`conv1`, `blocks.N.attn.query`, `after_norm`, ...);
    positions are sinusoidal and computed, so that any length fits and nothing is stored for them.

    Args:
        n_mels: mel bands, 80 or 128.
        width: features of a frame; 64 a head is usual.
        depth: number of blocks.
        heads: attention heads; divides width.
        pooling: 1 keeps 50 Hz; 2 averages pairs of frames to 25 Hz.
        adaptor_dim: adds the adaptor (convolution of stride 2, two linear layers) to 12.5 Hz
            at this width; needs pooling 2.
    """

    modality = "audio"
    front_end: LogMel

    def __init__(
        self,
        n_mels: int = 80,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        pooling: int = 1,
        adaptor_dim: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width {width} must be even and divisible by heads {heads}")
        if pooling not in (1, 2):
            raise ValueError(f"pooling must be 1 (50 Hz) or 2 (25 Hz), got {pooling}")
        if adaptor_dim is not None and pooling != 2:
            raise ValueError("adaptor_dim needs pooling 2: the adaptor goes from 25 to 12.5 Hz")
        self.arguments = {
            "n_mels": n_mels,
            "width": width,
            "depth": depth,
            "heads": heads,
            "pooling": pooling,
            "adaptor_dim": adaptor_dim,
        }
        self.pooling = pooling
        self.feature_dim = adaptor_dim or width
        self.frame_rate = MEL_RATE / 2 / pooling / (2 if adaptor_dim else 1)
        self.front_end = LogMel(n_mels)
        self.conv1 = nn.Conv1d(n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.after_norm = nn.LayerNorm(width)
        self.adaptor = Adaptor(width, adaptor_dim) if adaptor_dim else None

    def forward(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features.

        Args:
            log_mel: shape (batch, n_mels, frames), 100 Hz.
            lengths: frames of each clip, shape (batch,); all of them when None.

        Returns:
            features, shape (batch, frames', feature_dim), zero beyond each clip's length, at
            `frame_rate` Hz; frames' of each clip, shape (batch,).

        Raises:
            ValueError: another number of mel bands, or fewer frames than one output frame needs.
        """
        x, lengths = self._stem(log_mel, lengths)
        mask = frame_mask(lengths, x.shape[1])
        with valid_frames(mask):
            for block in self.blocks:
                x = block(x, mask)
        if self.pooling == 2:
            x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
            lengths = lengths // 2
        x = self.after_norm(x) * frame_mask(lengths, x.shape[1]).unsqueeze(-1)
        if self.adaptor is not None:
            x, lengths = self.adaptor(x, lengths)
        return x, lengths

    def block_outputs(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Residual stream after each block, depth tensors (batch, frames / 2, width) at 50 Hz, and their lengths.

        Frames beyond a clip's length hold numbers without a meaning; arguments as in `forward`.
        """
        x, lengths = self._stem(log_mel, lengths)
        mask = frame_mask(lengths, x.shape[1])
        outputs = []
        with valid_frames(mask):
            for block in self.blocks:
                x = block(x, mask)
                outputs.append(x)
        return outputs, lengths

    def _stem(self, log_mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        n_mels = self.arguments["n_mels"]
        if log_mel.dim() != 3 or log_mel.shape[1] != n_mels:
            raise ValueError(f"log_mel must be (batch, {n_mels}, frames), got shape {tuple(log_mel.shape)}")
        if lengths is None:
            lengths = torch.full((log_mel.shape[0],), log_mel.shape[2], device=log_mel.device)
        if not torch.compiler.is_exporting() and log_mel.shape[2] <= 2 * (self.pooling - 1):
            raise ValueError(f"clip of {log_mel.shape[2]} mel frames is shorter than one frame at {self.frame_rate} Hz")

        # Each convolution sees zeros past a clip's end, as it would if the clip were alone.
        mask = frame_mask(lengths, log_mel.shape[2])
        x = F.gelu(self.conv1(log_mel * mask.unsqueeze(1)))
        x = F.gelu(self.conv2(x * mask.unsqueeze(1))).transpose(1, 2)  # (batch, frames / 2, width)
        lengths = (lengths + 1) // 2
        x = x + sinusoids(x.shape[1], x.shape[2], x)
        return x, lengths

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean of a clip's frame features, shape (batch, feature_dim); arguments as in `forward`."""
        features, feature_lengths = self(inputs, lengths)
        mean: Tensor = features.sum(dim=1) / feature_lengths.clamp_min(1).unsqueeze(1)
        return mean


class Block(nn.Module):
    """Pre-norm transformer block: attention and a 4 times wider MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn_ln = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: shape (batch, time, width); mask: (batch, time), True where a frame is real."""
        x = x + self.attn(self.attn_ln(x), mask)
        out: Tensor = x + self.mlp(self.mlp_ln(x))
        return out


class Attention(nn.Module):
    """Multi-head self-attention; `key` has no bias, as in Whisper."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.products = AttentionProducts()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: shape (batch, time, width); mask: (batch, time), True where a frame may be attended to."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, width / heads)
            for layer in (self.query, self.key, self.value)
        )
        attended = self.products(query, key, value, mask[:, None, None, :])
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class Adaptor(nn.Module):
    """25 Hz features to 12.5 Hz at a language model's width, in the layout of Step-Audio 2's adaptor."""

    def __init__(self, width: int, dim: int, hidden: int = 2048) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x: shape (batch, time, width), zero beyond each clip's length; returns (batch, time / 2, dim)."""
        x = F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        lengths = (lengths + 1) // 2
        mask = frame_mask(lengths, x.shape[1])
        with valid_frames(mask):
            x = self.linear2(F.relu(self.linear1(x)))
        return x * mask.unsqueeze(-1), lengths


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True where a frame is real: lengths (batch,) to bool (batch, frames)."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def sinusoids(frames: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions, shape (frames, width), on the device of `like` (openai/whisper `model.py`)."""
    step = math.log(10_000) / (width // 2 - 1)
    rates = torch.exp(-step * torch.arange(width // 2, device=like.device))
    angles = torch.arange(frames, device=like.device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
