"""Frames at one rate become frames at another: means over the time that a new frame covers."""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIGHEST = 1_000  # Hz; the matrix has a column for each frame until the ratio comes round


class Resampling(nn.Module):
    """Each new frame is the mean of the frames it covers in time, weighted by the overlap.

    From 50 Hz to 25 Hz that is the mean of pairs, from 25 Hz to 50/3 Hz one frame and half of the next, from 12.5 Hz to
    25 Hz every frame twice. New frames that a clip does not cover whole are dropped, so that none depends on padding or
    on the clip's future. One product with a small constant matrix, in every runtime.

    Args:
        rate_in: frames a second that come, in Hz.
        rate_out: frames a second that leave, in Hz.

    Attributes:
        weights: shape (given, taken): `taken` frames become `given`, again and again; rows sum to 1.

    Raises:
        ValueError: a rate that is not above 0, or above 1,000 Hz.
    """

    weights: Tensor

    def __init__(self, rate_in: float, rate_out: float) -> None:
        super().__init__()
        if not (0 < rate_in <= HIGHEST and 0 < rate_out <= HIGHEST):
            raise ValueError(f"rates must be above 0 Hz and at most {HIGHEST:,} Hz, got {rate_in} and {rate_out}")
        ratio = Fraction(rate_in).limit_denominator(1000) / Fraction(rate_out).limit_denominator(1000)
        self.taken, self.given = ratio.numerator, ratio.denominator
        with torch.device("cpu"):  # an encoder may be built on the meta device
            ends = (
                torch.arange(1, self.given + 1).unsqueeze(1) * self.taken,
                torch.arange(1, self.taken + 1) * self.given,
            )
            overlap = torch.minimum(*ends) - torch.maximum(ends[0] - self.taken, ends[1] - self.given)
            weights = overlap.clamp_min(0) / self.taken
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Resample a batch.

        Args:
            frames: shape (batch, frames, dim).
            lengths: frames of each clip, shape (batch,).

        Returns:
            shape (batch, frames * given // taken, dim), without a meaning beyond a clip's length; lengths, (batch,).
        """
        groups = (frames.shape[1] + self.taken - 1) // self.taken
        whole = F.pad(frames, (0, 0, 0, self.taken - 1))[:, : groups * self.taken].unflatten(1, (groups, self.taken))
        resampled = (self.weights.to(frames.dtype) @ whole).flatten(1, 2)  # (batch, groups * given, dim)
        return resampled[:, : frames.shape[1] * self.given // self.taken], lengths * self.given // self.taken
