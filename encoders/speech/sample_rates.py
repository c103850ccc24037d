"""Resampling between any two rates: torchaudio's interpolation, each weight computed where it is needed."""

import numpy as np
import torch
from torch import Tensor

ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's defaults
AT_ONCE = 2**20  # weights in memory


def sinc_resampled(waveform: Tensor, taken: int, given: int, width: int) -> Tensor:
    """A sinc with a Hann window, as in `torchaudio.functional.resample`, without a table of its weights.

    torchaudio's table has one row for each sample that leaves until the ratio comes round: from 44,101 to 16,000 Hz
    16,000 rows of 44,000 weights, nearly all of them zero. Here each sample that leaves has its 35 weights, in float64,
    at its exact place in time.

    Args:
        waveform: float32, shape (samples,).
        taken: so many samples become `given`; the two have no common divisor.
        given: see `taken`.
        width: samples on either side that one which leaves looks at.

    Returns:
        float32, shape (samples * given / taken, rounded up,).
    """
    cutoff, offsets = min(taken, given) * ROLLOFF, np.arange(-width, width + 2)
    samples = np.pad(waveform.numpy(), (width, width + 1))
    parts = []
    for chosen in torch.arange(-(-len(waveform) * given // taken)).split(max(1, AT_ONCE // len(offsets))):
        places = chosen.numpy() * taken
        near = places // given
        # Time from the sample that leaves to each that came, in units of both rates: whole numbers, so exact.
        late = (near[:, None] + offsets) * given - places[:, None]
        time = np.clip(late * (cutoff / (taken * given)), -ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = np.cos(time * (np.pi / ZERO_CROSSINGS / 2)) ** 2
        weights = np.sinc(time) * window * (cutoff / taken)
        parts.append((weights * samples[near[:, None] + offsets + width]).sum(axis=1))
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
