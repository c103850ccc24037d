"""Resampling between any two rates: torchaudio's interpolation, each weight computed where it is needed."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's defaults
AT_ONCE = 2**20  # weights in memory


class SincResampling:
    """A sinc with a Hann window, as in `torchaudio.functional.resample`, without a table of its weights.

    torchaudio's table has one row for each sample that leaves until the ratio comes round: from 44,101 to 16,000 Hz
    16,000 rows of 44,000 weights, nearly all of them zero. Here each sample that leaves has its 35 weights, in float64,
    at its exact place in time.

    Args:
        rate_in: in Hz.
        rate_out: in Hz.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        divisor = math.gcd(rate_in, rate_out)
        self.taken, self.given = rate_in // divisor, rate_out // divisor
        self.cutoff = min(self.taken, self.given) * ROLLOFF
        self.width = math.ceil(ZERO_CROSSINGS * self.taken / self.cutoff)  # samples on either side

    def blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks of samples, float32, shape (samples,), any lengths, to blocks at the other rate."""
        waiting, begin = np.zeros(self.width, np.float32), -self.width  # place of its first sample
        done, end = 0, 0  # samples that have left; that have come
        for block in blocks:
            waiting, end = np.concatenate([waiting, block]), end + len(block)
            ready = max(done, (end - self.width - 1) * self.given // self.taken)
            yield from self._samples(waiting, begin, done, ready)
            done = ready
            keep = max(begin, done * self.taken // self.given - self.width)
            waiting, begin = waiting[keep - begin :], keep
        waiting = np.concatenate([waiting, np.zeros(2 * self.width + 1, np.float32)])
        yield from self._samples(waiting, begin, done, -(-end * self.given // self.taken))

    def _samples(self, samples: np.ndarray, begin: int, first: int, last: int) -> Iterator[np.ndarray]:
        """Samples `first` to `last` that leave, from those that came, the first of which has the place `begin`."""
        offsets = np.arange(-self.width, self.width + 2)
        step = max(1, AT_ONCE // len(offsets))
        for start in range(first, last, step):
            places = np.arange(start, min(start + step, last), dtype=np.int64) * self.taken
            near = places // self.given
            # Time from the sample that leaves to each that came, in units of both rates: whole numbers, so exact.
            late = (near[:, None] + offsets) * self.given - places[:, None]
            time = np.clip(late * (self.cutoff / (self.taken * self.given)), -ZERO_CROSSINGS, ZERO_CROSSINGS)
            window = np.cos(time * (np.pi / ZERO_CROSSINGS / 2)) ** 2
            weights = np.sinc(time) * window * (self.cutoff / self.taken)
            taken = samples[near[:, None] + offsets - begin]
            yield (weights * taken).sum(axis=1).astype(np.float32)
