"""Any sample rate to 16,000 Hz: a whole recording, its blocks as they come, or one part of it."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
import torchaudio
from torch import Tensor

from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.sample_rates import ROLLOFF, ZERO_CROSSINGS, sinc_resampled

# Values of torchaudio's kernel, which has one row for each sample of the ratio: 44,101 Hz would need 700 million.
_LARGEST_KERNEL = 2**22


def resampled_length(samples: int, rate: int) -> int:
    """Samples at 16,000 Hz that so many at `rate` Hz become."""
    return -(-samples * SAMPLE_RATE // rate)


def resampled_whole(waveform: Tensor, rate: int) -> Tensor:
    """A waveform at `rate` Hz, shape (samples,), at 16,000 Hz: what torchaudio gives."""
    return _resampling(rate)[0](waveform)


def resampled(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Blocks of samples at `rate` Hz to blocks at 16,000 Hz: together what `resampled_whole` gives.

    Args:
        blocks: float32, shape (samples,), any lengths.
        rate: in Hz.
    """
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    resample, taken, given, context = _resampling(rate)
    waiting, left = np.zeros(0, np.float32), 0  # `left` samples have been resampled, and are context now
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        end = left + max(0, len(waiting) - left - context) // taken * taken
        if end > left:
            result = resample(torch.from_numpy(waiting[: end + context])).numpy()
            yield result[left // taken * given : end // taken * given]
            waiting, left = waiting[max(0, end - context) :], min(end, context)
    yield resample(torch.from_numpy(waiting)).numpy()[left // taken * given :]


def resampled_part(read: Callable[[int, int], np.ndarray], rate: int, start: int, end: int) -> np.ndarray:
    """Some samples of what a recording is at 16,000 Hz, from those at its own rate that they look at.

    Args:
        read: gives samples `first` to `last`, float32, at the recording's rate; fewer where it ends before.
        rate: of the recording, in Hz.
        start: of the first sample at 16,000 Hz.
        end: behind the last one; at most the recording's length at 16,000 Hz.

    Returns:
        float32, shape (end - start,); the same bits whatever `read` reads from.
    """
    if rate == SAMPLE_RATE:
        return read(start, end)
    resample, taken, given, context = _resampling(rate)
    first = start // given * taken
    left = min(first, context)
    near = read(first - left, -(-end // given) * taken + context)
    skip = left // taken * given + start % given
    return resample(torch.from_numpy(near)).numpy()[skip : skip + end - start]


def _resampling(rate: int) -> tuple[Callable[[Tensor], Tensor], int, int, int]:
    """What brings waveforms to 16,000 Hz; so many samples become so many, looking at so many on either side."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    taken, given = rate // divisor, SAMPLE_RATE // divisor
    width = math.ceil(ZERO_CROSSINGS * taken / (min(taken, given) * ROLLOFF))
    context = math.ceil(width / taken) * taken  # cuts lie where the ratio comes round
    if taken * given <= _LARGEST_KERNEL:
        return torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float32), taken, given, context
    return partial(sinc_resampled, taken=taken, given=given, width=width), taken, given, context
