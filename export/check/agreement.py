"""How far a file's features are from torch's: squared error over variance, frame by frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Features that hardly vary are compared by their size: of the mean square.
SMALLEST_VARIANCE = 1e-6


class Features(NamedTuple):
    """Of one clip, without padding: (frames, feature_dim) each; of an image one frame."""

    clip: str
    found: Tensor
    expected: Tensor


@dataclass
class WorstFrame:
    """The frame with the largest error: of which clip, at which second (null for images)."""

    clip: str
    seconds: float | None
    error_over_variance: float

    def __str__(self) -> str:
        place = "" if self.seconds is None else f" at {self.seconds:.2f} s"
        return f"{self.error_over_variance:.2g} ({self.clip}{place})"


@dataclass
class Agreement:
    """Features of a file beside torch's.

    Attributes:
        error_over_variance: mean squared error of all frames over the variance of torch's features: their mean square
            once each dimension's mean is taken off, over all frames and dimensions. NaN when any feature is.
        worst: the frame with the largest.
        frames: compared.
        frames_above: of them, those with an error above the limit.
    """

    error_over_variance: float
    worst: WorstFrame
    frames: int
    frames_above: int


def agreement(clips: Sequence[Features], limit: float, frame_rate: float | None) -> Agreement:
    """Compare the features of all clips.

    Args:
        clips: with at least one frame among them.
        limit: error over variance of a frame.
        frame_rate: in Hz; None for images.

    Raises:
        ValueError: no frame at all.
    """
    expected = torch.cat([clip.expected for clip in clips]).double()
    if not len(expected):
        raise ValueError("no clip is long enough for one frame of features: give longer ones")
    errors = frame_errors(torch.cat([clip.found for clip in clips]), expected)
    place = int(errors.argmax())  # the first NaN, if there is one
    for clip in clips:
        if place < len(clip.expected):
            break
        place -= len(clip.expected)
    worst = WorstFrame(clip.clip, None if frame_rate is None else place / frame_rate, float(errors.max()))
    return Agreement(float(errors.mean()), worst, len(errors), int((~(errors <= limit)).sum()))


def frame_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Mean squared error of each frame over the variance of `expected`, each dimension's mean taken off.

    Args:
        found: shape (frames, dimensions).
        expected: shape (frames, dimensions).

    Returns:
        shape (frames,).
    """
    expected = expected.double()
    errors = (found.double() - expected).square().mean(dim=1)
    variance = (expected - expected.mean(dim=0)).square().mean()
    scale = torch.maximum(variance, SMALLEST_VARIANCE * expected.square().mean())
    return torch.where(errors == 0, 0.0, errors / scale)  # features that are all zero have no scale
