"""Speech transformer of the Whisper / Step-Audio shape: conv stem, pre-norm blocks, 50, 25 or 12.5 Hz."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.base import register_encoder
from encoders.speech.frames import BlockEncoder, checked_log_mel, frame_mask
from encoders.speech.log_mel import HOP, SAMPLE_RATE, FilledLogMel, LogMel, WhisperLogMel, cut_to
from quant import AttentionProducts, valid_frames
from quant.checks import check_at_least, check_choice

MEL_RATE = SAMPLE_RATE / HOP  # 100 Hz
HIDDEN = 2048  # between the adaptor's linear layers
FRONT_ENDS: dict[str, type[LogMel]] = {"causal": LogMel, "whisper": WhisperLogMel, "whisper_filled": FilledLogMel}


@register_encoder("speech_transformer")
class SpeechTransformer(BlockEncoder):
    """Log-mel frames to features: two convolutions, the second with stride 2, then pre-norm blocks.

    Layer names follow the Step-Audio 2 encoder (`conv1`, `blocks.N.attn.query`, `after_norm`, ...). By default
    positions are sinusoidal and computed, so that any length fits and nothing is stored for them; with learned
    positions, pooling and adaptor it is that encoder (`encoders.step_audio_2`), and imported weights give the
    features they were published with.

    Args:
        n_mels: mel bands, 80 or 128.
        width: features of a frame; 64 a head is usual.
        depth: number of blocks.
        heads: attention heads; divides width.
        pooling: 1 keeps 50 Hz; 2 averages pairs of frames to 25 Hz.
        adaptor_dim: adds the adaptor (convolution of stride 2, two linear layers) to 12.5 Hz
            at this width; needs pooling 2.
        positions: learned positions for so many frames of 50 Hz, 1500 (30 s) in published encoders; sinusoidal
            ones for any length when None.
        log_mel: `causal` (`LogMel`), or `whisper` (`WhisperLogMel`) as published encoders have it, or `whisper_filled`
            (`FilledLogMel`), which fills every clip with silence to all positions, as Whisper itself does.
        margin: with `whisper_filled`: seconds of silence after each clip instead, as far as there are positions.

    Raises:
        ValueError: a size below 1, a margin for clips that are not filled, or sizes that do not go together.
    """

    front_end: LogMel
    block_rate = MEL_RATE / 2

    def __init__(
        self,
        n_mels: int = 80,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        pooling: int = 1,
        adaptor_dim: int | None = None,
        positions: int | None = None,
        log_mel: Literal["causal", "whisper", "whisper_filled"] = "causal",
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("log_mel", log_mel, FRONT_ENDS)
        check_at_least(1, depth=depth, heads=heads, positions=positions)
        check_at_least(4, width=width)  # sinusoidal positions have two rates or more
        if width % heads or width % 2:
            raise ValueError(f"width {width} must be even and divisible by heads {heads}")
        check_rates(pooling, adaptor_dim)
        self.pooling = pooling
        self.feature_dim, self.block_width = adaptor_dim or width, width
        self.frame_rate = MEL_RATE / 2 / pooling / (2 if adaptor_dim else 1)
        self.fill(margin)
        self.conv1 = nn.Conv1d(n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(positions, width) if positions else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.after_norm = nn.LayerNorm(width)
        self.adaptor = Adaptor(width, adaptor_dim) if adaptor_dim else None
        if self.positional_embedding is not None:
            with torch.no_grad():
                weight = self.positional_embedding.weight
                weight.copy_(sinusoids(len(weight), width, weight))

    def fill(self, margin: float | None) -> None:
        """Follow each clip by so many seconds of silence from now on, by all that there are positions for when None.

        Raises:
            ValueError: a margin for clips that are not filled, or that is no multiple of a frame's 20 ms.
        """
        arguments = self.arguments | {"margin": margin}
        if margin is None:
            # Encoders had no such argument once: their folders, files and hashes are still those of one without.
            del arguments["margin"]
        self.front_end = log_mel_front_end(arguments)
        self.arguments = arguments
        # All frames count then: no mask, which would cost an exported file an eighth of its time.
        self.filled = isinstance(self.front_end, FilledLogMel) and margin is None

    def forward(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features.

        Args:
            log_mel: shape (batch, n_mels, frames), 100 Hz; with `front_end.lookahead` frames more than the longest
                clip has.
            lengths: frames of each clip without the lookahead, shape (batch,); all of them when None, and of filled
                clips whatever is given.

        Returns:
            features, shape (batch, frames', feature_dim), zero beyond each clip's length, at
            `frame_rate` Hz; frames' of each clip, shape (batch,).

        Raises:
            ValueError: another number of mel bands, fewer frames than one output frame needs, more than there
                are positions for, or of filled clips not exactly as many.
        """
        x, lengths, seen = self._stem(log_mel, lengths)
        x = self.through_blocks(x, None if self.filled else lengths)
        if self.pooling == 2:
            x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
            lengths, seen = lengths // 2, seen // 2
        x = self.after_norm(x)
        if self.adaptor is None:
            return self._real(x, lengths, time=1), lengths
        return self.adaptor(self._real(x, seen, time=1), lengths)

    def _stem(self, log_mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames at 50 Hz, how many of them are a clip's own, and how many with those of the lookahead."""
        lookahead = self.front_end.lookahead
        log_mel, lengths = checked_log_mel(log_mel, lengths, self.arguments["n_mels"], lookahead)
        if not torch.compiler.is_exporting():
            self._check_frames(log_mel.shape[2])

        if self.filled:
            lengths = torch.full_like(lengths, log_mel.shape[2])
        # Each convolution sees zeros past a clip's end, as it would if the clip were alone.
        x = F.gelu(self.conv1(self._real(log_mel, lengths + lookahead)))
        x = F.gelu(self.conv2(self._real(x, lengths + lookahead))).transpose(1, 2)  # (batch, frames / 2, width)
        if self.positional_embedding is None:
            x = x + sinusoids(x.shape[1], x.shape[2], x)
        else:
            # A frame of lookahead behind the longest clip needs no position: nothing attends to it.
            x = x + F.pad(self.positional_embedding.weight, (0, 0, 0, lookahead // 2))[: x.shape[1]]
        return x, (lengths + 1) // 2, (lengths + lookahead + 1) // 2

    def _real(self, x: Tensor, lengths: Tensor, time: int = 2) -> Tensor:
        """x (batch, channels, time), or with another axis of time, zero beyond each length; as it is where filled."""
        return x if self.filled else x * frame_mask(lengths, x.shape[time]).unsqueeze(3 - time)

    def _check_frames(self, frames: int) -> None:
        positions, lookahead = self.arguments["positions"], self.front_end.lookahead
        if frames <= 2 * (self.pooling - 1):
            raise ValueError(f"clip of {frames} mel frames is shorter than one frame at {self.frame_rate} Hz")
        if self.filled and frames != 2 * positions:
            raise ValueError(
                f"log-mels of filled clips have exactly {2 * positions:,} frames ({2 * positions / MEL_RATE:g} s), got "
                f"{frames:,}: the encoder's front_end fills them"
            )
        if positions is not None and frames > 2 * positions + lookahead:
            raise ValueError(
                f"clip of {(frames - lookahead) / MEL_RATE:.2f} s is longer than the encoder's positions, "
                f"{2 * positions / MEL_RATE:g} s: {cut_to(2 * positions / MEL_RATE)}"
            )


class Block(nn.Module):
    """Pre-norm transformer block: attention and a 4 times wider MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn_ln = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: shape (batch, time, width); mask: (batch, time), True where a frame is real, None where all are."""
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
        self.products = AttentionProducts(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (batch, time, width); mask: (batch, time), True where a frame may be attended to, None where all may."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, width / heads)
            for layer in (self.query, self.key, self.value)
        )
        attended = self.products(query, key, value, None if mask is None else mask[:, None, None, :])
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class Adaptor(nn.Module):
    """25 Hz features to 12.5 Hz at a language model's width, in the layout of Step-Audio 2's adaptor.

    Args:
        width: of the features.
        dim: the language model's width.
        causal: the convolution is given the frame before the features, and looks at no frame after its own pair.
    """

    def __init__(self, width: int, dim: int, causal: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=0 if causal else 1)
        self.linear1 = nn.Linear(width, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, dim)

    def forward(self, x: Tensor, lengths: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (batch, time, width), zero beyond each length; before: (batch, width, 1); to (batch, time / 2, dim)."""
        x = x.transpose(1, 2)
        x = F.gelu(self.conv(x if before is None else torch.cat([before, x], dim=2))).transpose(1, 2)
        lengths = (lengths + 1) // 2
        mask = frame_mask(lengths, x.shape[1])
        with valid_frames(mask):
            x = self.linear2(F.relu(self.linear1(x)))
        return x * mask.unsqueeze(-1), lengths


def log_mel_front_end(arguments: Mapping[str, Any]) -> LogMel:
    """The front end of an encoder of these arguments.

    Raises:
        ValueError: clips to be filled where no positions say how far, or a margin for clips that are not filled.
    """
    log_mel, n_mels, positions = arguments["log_mel"], arguments["n_mels"], arguments["positions"]
    margin = arguments.get("margin")
    if log_mel != "whisper_filled":
        if margin is not None:
            raise ValueError(f"a margin of silence needs clips that are filled, log_mel whisper_filled, not {log_mel}")
        return FRONT_ENDS[log_mel](n_mels)
    if positions is None:
        raise ValueError("log_mel whisper_filled fills clips to all positions: give positions, 1500 for 30 s")
    return FilledLogMel(n_mels, 2 * HOP * positions, margin)


def check_rates(pooling: int, adaptor_dim: int | None) -> None:
    """Raise ValueError where no encoder has such a pooling and adaptor."""
    check_at_least(1, adaptor_dim=adaptor_dim)
    if pooling not in (1, 2):
        raise ValueError(f"pooling must be 1 (50 Hz) or 2 (25 Hz), got {pooling}")
    if adaptor_dim is not None and pooling != 2:
        raise ValueError("adaptor_dim needs pooling 2: the adaptor goes from 25 to 12.5 Hz")


def sinusoids(frames: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal positions, shape (frames, width), on the device of `like` (openai/whisper `model.py`)."""
    step = math.log(10_000) / (width // 2 - 1)
    rates = torch.exp(-step * torch.arange(width // 2, device=like.device))
    angles = torch.arange(frames, device=like.device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
