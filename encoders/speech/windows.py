"""Audio of any length in windows that overlap: each encoded by itself, the features stitched on one grid of frames."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from encoders.speech.frames import FrameEncoder
from encoders.speech.log_mel import HOP, SAMPLE_RATE
from encoders.speech.log_mel import WINDOW as SHORTEST
from quant.checks import check_above, check_at_least

WINDOW, OVERLAP = 30.0, 4.0  # seconds
# Audio that is shorter is padded with what `lengths` does not count: strided layers need a few mel frames.
PADDED_TO = SAMPLE_RATE


@dataclass(frozen=True)
class WindowEncoder:
    """Samples in, features out: an encoder in torch (`window_encoder`) or in a file (`export.file_window_encoder`).

    Attributes:
        encode: waveforms, float32 (batch, samples) at 16,000 Hz, and the samples of each, int64 (batch,), to features,
            float32 (batch, frames, feature_dim), and the frames of each, (batch,).
        frame_rate: features a second, in Hz.
        feature_dim: width of the features.
        longest: samples that it takes at most; None for any number.
        step: samples; a window that starts at a multiple of it has its frames where the whole would have them.
    """

    encode: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    frame_rate: float
    feature_dim: int
    longest: int | None
    step: int

    @property
    def frame(self) -> int:
        """Samples from one frame to the next."""
        return round(SAMPLE_RATE / self.frame_rate)


class Piece(NamedTuple):
    """The next features, and how well two windows agree where it ends.

    Attributes:
        features: float32, shape (frames, feature_dim).
        seam: at the two frames beside its end, the distance between both windows' features over their norm; None
            where the audio ends, or where windows do not overlap.
    """

    features: np.ndarray
    seam: float | None


class Windows(NamedTuple):
    """Length of a window and distance from one start to the next, both in samples."""

    length: int
    hop: int


def window_encoder(encoder: FrameEncoder) -> WindowEncoder:
    """A speech encoder in evaluation mode; it runs at the bit-width of the `quant.at` around the loop.

    Example:
        >>> import encoders
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> encoders.window_encoder(encoder.eval()).frame_rate
        50.0
    """

    @torch.no_grad()
    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = next(encoder.parameters()).device
        inputs = encoder.front_end(torch.from_numpy(waveforms).to(device), torch.from_numpy(lengths).to(device))
        features, feature_lengths = encoder(*inputs)
        return features.float().cpu().numpy(), feature_lengths.cpu().numpy()

    longest, step = limits(encoder.arguments, encoder.frame_rate)
    return WindowEncoder(encode, encoder.frame_rate, encoder.feature_dim, longest, step)


def limits(arguments: Mapping[str, Any], frame_rate: float) -> tuple[int | None, int]:
    """What an encoder of these constructor arguments asks of windows: `longest` and `step` of `WindowEncoder`.

    How long a clip may be is said here alone: encoders, exported files, their cards and checks have this limit.

    Args:
        arguments: learned `positions` end somewhere; attention to a `chunk` has to find the same chunks.
        frame_rate: in Hz.
    """
    positions, chunk = arguments.get("positions"), arguments.get("chunk", 1)
    step = math.lcm(round(SAMPLE_RATE / frame_rate), 2 * HOP * chunk)
    return (2 * HOP * positions if positions else None), step


def encode_windows(
    encoder: WindowEncoder,
    blocks: Iterable[np.ndarray],
    window: float | None = None,
    overlap: float = OVERLAP,
    batch_size: int = 1,
) -> Iterator[Piece]:
    """Features of audio of any length, in order; each frame is that of the window whose middle is nearest.

    As many frames as the encoder gives for the whole. Windows start on the grid of frames, and the last one ends with
    the audio, so that all but the first and last frames have at least half the overlap on either side. Memory is that
    of a batch of windows.

    Args:
        encoder: of `window_encoder` or `export.file_window_encoder`.
        blocks: samples at 16,000 Hz in order, float32, shape (samples,), any lengths: `read_blocks(path)`.
        window: length in seconds, rounded down to the encoder's grid; 30, or what the encoder takes at most, when None.
        overlap: of a window with the next in seconds, rounded up to the grid.
        batch_size: windows encoded at once.

    Yields:
        the next features; none at all when the audio is shorter than 25 ms, or than a feature.

    Raises:
        ValueError: a window that is longer than the encoder takes, or not longer than the overlap; an overlap that
            loses frames between windows.

    Example:
        >>> import encoders, numpy
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> minute = [numpy.zeros(16_000, numpy.float32) for _ in range(60)]  # blocks of samples, as they are read
        >>> pieces = encoders.encode_windows(encoders.window_encoder(encoder.eval()), minute, window=20)
        >>> sum(len(piece.features) for piece in pieces)
        3000
    """
    windows = plan(encoder, window, overlap)
    check_at_least(1, batch_size=batch_size)
    return _stitched(_encoded(encoder, _cut(blocks, windows, encoder.step), windows.length, batch_size))


def plan(encoder: WindowEncoder, window: float | None = None, overlap: float = OVERLAP) -> Windows:
    """Windows on an encoder's grid; arguments and errors as in `encode_windows`."""
    check_above(0, window=window)
    check_at_least(0, overlap=overlap)
    seconds = min(WINDOW, math.inf if encoder.longest is None else encoder.longest / SAMPLE_RATE)
    asked = round((seconds if window is None else window) * SAMPLE_RATE)
    if encoder.longest is not None and asked > encoder.longest:
        longest = encoder.longest / SAMPLE_RATE
        raise ValueError(f"a window of {window:g} s is longer than the encoder takes: at most {longest:g} s")
    length = asked // encoder.step * encoder.step
    hop = length - math.ceil(round(overlap * SAMPLE_RATE) / encoder.step) * encoder.step
    if hop <= 0:
        raise ValueError(
            f"windows of {asked / SAMPLE_RATE:g} s cannot overlap by {overlap:g} s: the window must be longer by at "
            f"least {encoder.step / SAMPLE_RATE:g} s"
        )
    return Windows(length, hop)


def _cut(blocks: Iterable[np.ndarray], windows: Windows, step: int) -> Iterator[tuple[int, np.ndarray]]:
    """Where each window starts, in samples, and its samples; the last is moved back until it ends with the audio."""
    before, kept, start = np.zeros(0, np.float32), np.zeros(0, np.float32), 0
    for block in blocks:
        kept = np.concatenate([kept, block])
        while len(kept) > windows.length:  # so this is not the last
            yield start, kept[: windows.length]
            before, kept, start = kept[: windows.hop], kept[windows.hop :], start + windows.hop
    back = min(len(before), max(0, windows.length - len(kept)) // step * step)
    if start + len(kept) >= SHORTEST:
        yield start - back, np.concatenate([before[len(before) - back :], kept])


def _encoded(
    encoder: WindowEncoder, windows: Iterator[tuple[int, np.ndarray]], length: int, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Which of the audio's frames each window begins with, and its features."""
    while batch := list(islice(windows, batch_size)):
        lengths = np.array([len(samples) for _, samples in batch])
        waveforms = np.zeros((len(batch), max(lengths.max(), min(PADDED_TO, length))), np.float32)
        for row, (_, samples) in zip(waveforms, batch, strict=True):
            row[: len(samples)] = samples
        features, frames = encoder.encode(waveforms, lengths)
        for (start, samples), values, count in zip(batch, features, frames, strict=True):
            # Of a window that silence filled, only the frames of the audio itself.
            yield start // encoder.frame, values[: min(count, -(-len(samples) // encoder.frame))]


def _stitched(encoded: Iterator[tuple[int, np.ndarray]]) -> Iterator[Piece]:
    """Each window's frames up to the middle of its overlap with the next."""
    kept_from, kept = next(encoded, (0, np.zeros((0, 0), np.float32)))
    for start, features in encoded:
        end = kept_from + len(kept)
        if start > end:
            raise ValueError(
                f"{start - end} frames are lost between two windows, which give fewer frames than they are long: take "
                "more overlap"
            )
        middle = (start + end) // 2
        first, last = max(start, middle - 1), min(end, middle + 1)  # frames beside the seam that both windows have
        seam = _difference(kept[first - kept_from : last - kept_from], features[first - start : last - start])
        yield Piece(kept[: middle - kept_from], seam)
        kept_from, kept = middle, features[middle - start :]
    if len(kept):
        yield Piece(kept, None)


def _difference(features: np.ndarray, others: np.ndarray) -> float | None:
    """Distance over norm; None of no frames."""
    norm = float(np.linalg.norm(features))
    return float(np.linalg.norm(features - others)) / norm if norm else None
