"""An audio file of any length, block by block: it is never in memory as a whole."""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from encoders.log_mel import SAMPLE_RATE

# What libsndfile says of a header that promises more bytes than there are.
_CUT_OFF = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")
# Written by programs that do not know the length yet: 2^31 or 2^32, less a header.
_UNKNOWN_LENGTH = 2**31 - 2**16


def read_blocks(path: str | Path, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Channel 0 of an audio file at 16,000 Hz, resampled on the fly as torchaudio resamples the whole.

    Args:
        path: wav, flac, ogg, mp3 and what else libsndfile reads.
        seconds: of a block.

    Yields:
        float32, shape (samples,), in [-1, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, cut off, without a sample, or with one that is NaN or infinite; the sentence names the
            file. A file that was cut off may only show where it ends.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"{path} is no audio file that libsndfile reads (wav, flac, ogg, mp3, ...): {error}"
        ) from error
    with file:
        lengths = _CUT_OFF.search(file.extra_info)
        if lengths is not None and int(lengths[2]) < int(lengths[1]) < _UNKNOWN_LENGTH:
            raise ValueError(
                f"{path} was cut off: its header promises {lengths[1]} bytes of samples, {lengths[2]} are there"
            )
        yield from resampled(_channel_0(file, path, seconds), file.samplerate)


def resampled(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Blocks of samples at `rate` Hz to blocks at 16,000 Hz: together what `torchaudio.transforms.Resample` gives.

    Args:
        blocks: float32, shape (samples,), any lengths.
        rate: in Hz.
    """
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    divisor = math.gcd(rate, SAMPLE_RATE)
    taken, given = rate // divisor, SAMPLE_RATE // divisor  # so many samples become so many
    resample = torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float32)  # as the function has it
    context = math.ceil(resample.width / taken) * taken  # that a sample of the result looks at, on either side
    waiting, left = np.zeros(0, np.float32), 0  # `left` samples have been resampled, and are context now
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        end = left + max(0, len(waiting) - left - context) // taken * taken
        if end > left:
            result = resample(torch.from_numpy(waiting[: end + context])).numpy()
            yield result[left // taken * given : end // taken * given]
            waiting, left = waiting[max(0, end - context) :], min(end, context)
    yield resample(torch.from_numpy(waiting)).numpy()[left // taken * given :]


def _channel_0(file: soundfile.SoundFile, path: Path, seconds: float) -> Iterator[np.ndarray]:
    samples, rate = 0, file.samplerate
    while True:
        try:
            block = file.read(round(seconds * rate), dtype="float32", always_2d=True)[:, 0]
        except soundfile.SoundFileError as error:
            where = f"{samples / rate:.2f} of {file.frames / rate:.2f} s"
            raise ValueError(f"{path} is damaged or was cut off after {where}: {error}") from error
        if not len(block):
            break
        if not np.isfinite(block).all():
            raise ValueError(f"{path} has a sample that is NaN or infinite, after {samples / rate:.2f} s")
        samples += len(block)
        yield np.ascontiguousarray(block)
    if samples == 0:
        raise ValueError(f"{path} holds no sample")
