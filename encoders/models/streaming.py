"""Speech transformer for streams: causal convolutions, attention to chunks with a limited past, state in and out."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.base import register_encoder
from encoders.models.speech_transformer import MEL_RATE, Adaptor, Attention, Block, check_rates
from encoders.speech.frames import BlockEncoder, checked_log_mel, frame_mask
from encoders.speech.log_mel import LogMel
from quant import valid_frames
from quant.checks import check_at_least


class State(NamedTuple):
    """What one piece of a stream leaves to the next; its size does not grow.

    Attributes:
        mel: last two mel frames, shape (batch, n_mels, 2).
        stem: last frame of the first convolution, shape (batch, width, 1).
        keys: of each block, the past that attention may look at, shape (depth, batch, past, width).
        values: the same of values.
        past: how many frames of the past there have been, up to all of them, shape (batch,), int64.
        adaptor: last frame before the adaptor's convolution, shape (batch, width, 1).
    """

    mel: Tensor
    stem: Tensor
    keys: Tensor
    values: Tensor
    past: Tensor
    adaptor: Tensor


@register_encoder("streaming_transformer")
class StreamingTransformer(BlockEncoder):
    """The speech transformer's shape, for streams of any length: a clip at once is a stream in one piece.

    The second convolution and the adaptor's look at no frame beyond their own pair, as in Step-Audio 2; the first is
    made causal. A frame attends to its chunk and to the chunks before it, `left_chunks` of them (Emformer, Shi et al.
    2021, without its memory); positions are rotary (Su et al. 2021), counted within that window, so that the
    hundredth hour is as good as the first. Latency is one chunk and 12.5 ms of the log-mel.

    Args:
        n_mels: mel bands, 80 or 128.
        width: features of a frame; 64 a head is usual.
        depth: number of blocks.
        heads: attention heads; divides width into even parts.
        pooling: 1 keeps 50 Hz; 2 averages pairs of frames to 25 Hz.
        adaptor_dim: adds the adaptor to 12.5 Hz at this width; needs pooling 2.
        chunk: frames of 50 Hz that are seen at once; a multiple of 2 with pooling, of 4 with the adaptor.
        left_chunks: chunks of the past that a frame attends to.

    Raises:
        ValueError: a size below 1, or sizes that do not go together.
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
        chunk: int = 16,
        left_chunks: int = 8,
    ) -> None:
        super().__init__()
        check_at_least(1, width=width, depth=depth, heads=heads, chunk=chunk, left_chunks=left_chunks)
        if width % (2 * heads):
            raise ValueError(f"width {width} must be divisible by twice the heads {heads}: rotations take pairs")
        check_rates(pooling, adaptor_dim)
        stride = pooling * (2 if adaptor_dim else 1)
        if chunk % stride:
            raise ValueError(f"chunk {chunk} must be a multiple of {stride}")
        self.pooling, self.chunk, self.left_chunks = pooling, chunk, left_chunks
        self.feature_dim, self.block_width = adaptor_dim or width, width
        self.frame_rate = MEL_RATE / 2 / stride
        self.front_end = LogMel(n_mels)
        self.conv1 = nn.Conv1d(n_mels, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.blocks = nn.ModuleList(ChunkedBlock(width, heads, left_chunks) for _ in range(depth))
        self.after_norm = nn.LayerNorm(width)
        self.adaptor = Adaptor(width, adaptor_dim, causal=True) if adaptor_dim else None

    @property
    def chunk_mels(self) -> int:
        """Mel frames of a chunk."""
        return 2 * self.chunk

    def forward(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features of whole clips.

        Args:
            log_mel: shape (batch, n_mels, frames), 100 Hz.
            lengths: frames of each clip, shape (batch,); all of them when None.

        Returns:
            features, shape (batch, frames', feature_dim), zero beyond each clip's length, at `frame_rate` Hz; frames'
            of each clip, shape (batch,).

        Raises:
            ValueError: another number of mel bands.
        """
        log_mel, lengths = checked_log_mel(log_mel, lengths, self.arguments["n_mels"])
        frames = log_mel.shape[2]
        log_mel = F.pad(log_mel, (0, -frames % self.chunk_mels))
        features, feature_lengths, _ = self.stream(log_mel, lengths, self.start(log_mel.shape[0], log_mel.device))
        frames = (frames + 1) // 2 // self.pooling
        frames = frames if self.adaptor is None else (frames + 1) // 2
        return features[:, :frames], feature_lengths

    def start(self, batch: int = 1, device: torch.device | None = None) -> State:
        """The state before the first piece of a stream, of a batch of streams."""
        width, depth = self.block_width, len(self.blocks)
        cache = torch.zeros(depth, batch, self.left_chunks * self.chunk, width, device=device)
        return State(
            mel=torch.zeros(batch, self.arguments["n_mels"], 2, device=device),
            stem=torch.zeros(batch, width, 1, device=device),
            keys=cache,
            values=cache.clone(),
            past=torch.zeros(batch, dtype=torch.int64, device=device),
            adaptor=torch.zeros(batch, width, 1, device=device),
        )

    def stream(self, log_mel: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Features of the next piece of streams.

        Args:
            log_mel: whole chunks, shape (batch, n_mels, chunks * `chunk_mels`), 100 Hz.
            lengths: real frames of each, shape (batch,); fewer than all only in a stream's last piece.
            state: `start`'s, or what the piece before left.

        Returns:
            features, shape (batch, frames', feature_dim), zero beyond each length; frames' of each, shape (batch,);
            the state for the next piece.

        Raises:
            ValueError: not whole chunks.
        """
        x, lengths, new = self._run(log_mel, lengths, state)
        if self.pooling == 2:
            x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
            lengths = lengths // 2
        x = self.after_norm(x) * frame_mask(lengths, x.shape[1]).unsqueeze(2)
        new = new._replace(adaptor=x[:, -1:].transpose(1, 2))
        if self.adaptor is not None:
            x, lengths = self.adaptor(x, lengths, state.adaptor)
        return x, lengths, new

    def block_outputs(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Residual stream after each block, of whole clips: see `BlockEncoder`."""
        log_mel, lengths = checked_log_mel(log_mel, lengths, self.arguments["n_mels"])
        frames = (log_mel.shape[2] + 1) // 2
        log_mel = F.pad(log_mel, (0, -log_mel.shape[2] % self.chunk_mels))
        outputs: list[Tensor] = []
        _, lengths, _ = self._run(log_mel, lengths, self.start(log_mel.shape[0], log_mel.device), outputs)
        return [output[:, :frames] for output in outputs], lengths

    def _run(
        self, log_mel: Tensor, lengths: Tensor, state: State, outputs: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Frames after the last block at 50 Hz, their lengths, and the state but for the adaptor's part.

        What each block gives is kept where a list is given for it.
        """
        if not torch.compiler.is_exporting() and (log_mel.shape[2] == 0 or log_mel.shape[2] % self.chunk_mels):
            raise ValueError(f"a piece of {log_mel.shape[2]} mel frames is not whole chunks of {self.chunk_mels}")
        # Each convolution sees zeros past a clip's end, as it would if the clip were alone. (`len` of a tensor would
        # fix the batch of an exported file.)
        mask = frame_mask(lengths, log_mel.shape[2]).unsqueeze(1)
        mel = torch.cat([state.mel, log_mel * mask], dim=2)
        stem = torch.cat([state.stem, F.gelu(self.conv1(mel)) * mask], dim=2)
        x = F.gelu(self.conv2(stem)).transpose(1, 2)  # (batch, frames / 2, width)
        lengths = (lengths + 1) // 2

        real = frame_mask(lengths, x.shape[1])
        size = self.left_chunks * self.chunk
        filled = torch.arange(size, device=x.device) >= size - state.past.unsqueeze(1)
        attended = windows(torch.cat([filled, real], dim=1).unsqueeze(2), self.chunk, self.left_chunks).squeeze(3)
        keys, values = [], []
        with valid_frames(real):
            for n, block in enumerate(self.blocks):
                x, key, value = block(x, state.keys[n], state.values[n], attended)
                if outputs is not None:
                    outputs.append(x)
                keys.append(key)
                values.append(value)
        past = (state.past + real.shape[1]).clamp_max(size)
        new = State(mel[:, :, -2:], stem[:, :, -1:], torch.stack(keys), torch.stack(values), past, state.adaptor)
        return x, lengths, new


class ChunkedBlock(Block):
    """Pre-norm transformer block with chunked attention."""

    def __init__(self, width: int, heads: int, left_chunks: int) -> None:
        super().__init__(width, heads)
        self.attn = ChunkedAttention(width, heads, left_chunks)

    def forward(  # type: ignore[override]
        self, x: Tensor, keys: Tensor, values: Tensor, attended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: shape (batch, time, width); the rest as in `ChunkedAttention`."""
        y, keys, values = self.attn(self.attn_ln(x), keys, values, attended)
        x = x + y
        return x + self.mlp(self.mlp_ln(x)), keys, values


class ChunkedAttention(Attention):
    """Self-attention of each chunk to itself and to the chunks before it."""

    def __init__(self, width: int, heads: int, left_chunks: int) -> None:
        super().__init__(width, heads)
        self.left_chunks = left_chunks

    def forward(  # type: ignore[override]
        self, x: Tensor, keys: Tensor, values: Tensor, attended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attended frames and the new past.

        Args:
            x: shape (batch, time, width), whole chunks.
            keys: of the past, not rotated, shape (batch, past, width).
            values: of the past, shape (batch, past, width).
            attended: bool, shape (batch, chunks, past + chunk), True where a window has a real frame.

        Returns:
            shape (batch, time, width); keys and values of the new past.
        """
        past = keys.shape[1]
        chunk = past // self.left_chunks
        keys, values = torch.cat([keys, self.key(x)], dim=1), torch.cat([values, self.value(x)], dim=1)
        query = self.query(x).unflatten(1, (-1, chunk))  # (batch, chunks, chunk, width)
        key, value = (windows(past_and_new, chunk, self.left_chunks) for past_and_new in (keys, values))
        query, key, value = (
            part.flatten(0, 1).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch * chunks, heads, time, width)
            for part in (query, key, value)
        )
        cosines, sines = rotations(past + chunk, query.shape[3], x)
        query, key = rotated(query, cosines[past:], sines[past:]), rotated(key, cosines, sines)
        mask = attended.flatten(0, 1)[:, None, None, :]
        found = self.products(query, key, value, mask).transpose(1, 2).flatten(2)
        out: Tensor = self.out(found.unflatten(0, (x.shape[0], -1)).flatten(1, 2))
        return out, keys[:, -past:], values[:, -past:]


def windows(x: Tensor, chunk: int, left_chunks: int) -> Tensor:
    """Each chunk with those before it: (batch, past + time, ...) to (batch, chunks, past + chunk, ...)."""
    chunks = x.unflatten(1, (-1, chunk))
    count = chunks.shape[1] - left_chunks
    return torch.cat([chunks[:, n : n + count] for n in range(left_chunks + 1)], dim=2)


def rotations(frames: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each (frames, width / 2), on the device of `like`."""
    rates = 10_000 ** (-torch.arange(width // 2, device=like.device) / (width // 2))
    angles = torch.arange(frames, device=like.device).unsqueeze(1) * rates
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Pairs of features, the first half with the second, turned by their positions: x (..., frames, width)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
