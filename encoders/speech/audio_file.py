"""An audio file of any length, block by block: it is never in memory as a whole."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.sample_rates import ROLLOFF, ZERO_CROSSINGS, sinc_resampled
from encoders.storage.paths import kind_of, shown

RATES = (1_000, 768_000)  # Hz that are taken: below there is no speech, above a header is damaged
# What libsndfile says of a header that promises more bytes than there are.
_CUT_OFF = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)")
# Written by programs that do not know the length yet: 2^31 or 2^32, less a header.
_UNKNOWN_LENGTH = 2**31 - 2**16
# Values of torchaudio's kernel, which has one row for each sample of the ratio: 44,101 Hz would need 700 million.
_LARGEST_KERNEL = 2**22
_LARGEST_BLOCK = 2**24  # values of all channels, which a header may say there are a thousand of


class AudioFileError(ValueError):
    """A file that holds no usable sound.

    Args:
        path: of the file.
        sentence: what is wrong, after the file's name.
        reason: the same in a word or two, equal for all files it is true of.
    """

    def __init__(self, path: Path, sentence: str, reason: str) -> None:
        super().__init__(f"{shown(path)} {sentence}")
        self.reason = reason


def read_blocks(path: str | Path, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Channel 0 of an audio file at 16,000 Hz, resampled on the fly as torchaudio resamples the whole.

    Args:
        path: wav, flac, ogg, mp3 and what else libsndfile reads.
        seconds: of a block.

    Yields:
        float32, shape (samples,), in [-1, 1].

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: no regular file, unreadable, cut off, at a rate outside 1,000 to 768,000 Hz, without a sample,
            or with one that is NaN or infinite; the sentence names the file. A file that was cut off may only show
            where it ends.
    """
    path = Path(path)
    with opened(path) as file:
        yield from resampled(_channel_0(file, path, seconds), file.samplerate)


def read_whole(path: str | Path) -> tuple[np.ndarray, int]:
    """Channel 0 of an audio file at its own rate.

    Returns:
        float32, shape (samples,), in [-1, 1]; the rate in Hz.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: as `read_blocks`.
    """
    path = Path(path)
    with opened(path) as file:
        return np.concatenate(list(_channel_0(file, path, seconds=10.0))), file.samplerate


@contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """An audio file that looks usable from its header, open.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: no regular file, unreadable, cut off, or at a rate that no sound has.
    """
    kind = kind_of(path)
    if kind == "missing":
        raise FileNotFoundError(f"{shown(path)} does not exist")
    if kind is not None:
        raise AudioFileError(path, f"is {kind}, not an audio file", kind)
    try:
        file = soundfile.SoundFile(os.fsencode(path))  # the name's own bytes: it may not be UTF-8
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        if not os.access(path, os.R_OK):
            raise AudioFileError(path, "may not be read: its permissions forbid it", "not permitted") from error
        about = str(error).rpartition(": ")[2]
        sentence = f"is no audio file that libsndfile reads (wav, flac, ogg, mp3, ...): {about}"
        raise AudioFileError(path, sentence, "unreadable") from error
    with file:
        if not RATES[0] <= file.samplerate <= RATES[1]:
            allowed = f"{RATES[0]:,} to {RATES[1]:,} Hz"
            sentence = f"says its rate is {file.samplerate:,} Hz: {allowed} are read, so its header is damaged"
            raise AudioFileError(path, sentence, f"rate outside {allowed}")
        lengths = _CUT_OFF.search(file.extra_info)
        if lengths is not None and int(lengths[2]) < int(lengths[1]) < _UNKNOWN_LENGTH:
            promised = f"its header promises {lengths[1]} bytes of samples, {lengths[2]} are there"
            raise AudioFileError(path, f"was cut off: {promised}", "cut off")
        yield file


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
    resample, taken, given, width = _resampling(rate)
    context = math.ceil(width / taken) * taken  # that a sample of the result looks at, on either side
    waiting, left = np.zeros(0, np.float32), 0  # `left` samples have been resampled, and are context now
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        end = left + max(0, len(waiting) - left - context) // taken * taken
        if end > left:
            result = resample(torch.from_numpy(waiting[: end + context])).numpy()
            yield result[left // taken * given : end // taken * given]
            waiting, left = waiting[max(0, end - context) :], min(end, context)
    yield resample(torch.from_numpy(waiting)).numpy()[left // taken * given :]


def _resampling(rate: int) -> tuple[Callable[[Tensor], Tensor], int, int, int]:
    """What brings waveforms to 16,000 Hz; so many samples become so many, looking at so many on either side."""
    divisor = math.gcd(rate, SAMPLE_RATE)
    taken, given = rate // divisor, SAMPLE_RATE // divisor
    width = math.ceil(ZERO_CROSSINGS * taken / (min(taken, given) * ROLLOFF))
    if taken * given <= _LARGEST_KERNEL:
        return torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float32), taken, given, width
    return partial(sinc_resampled, taken=taken, given=given, width=width), taken, given, width


def _channel_0(file: soundfile.SoundFile, path: Path, seconds: float) -> Iterator[np.ndarray]:
    samples, rate = 0, file.samplerate
    frames = max(1, min(round(seconds * rate), _LARGEST_BLOCK // file.channels))
    while True:
        try:
            block = file.read(frames, dtype="float32", always_2d=True)[:, 0]
        except soundfile.SoundFileError as error:
            where = f"{samples / rate:.2f} of {file.frames / rate:.2f} s"
            raise AudioFileError(path, f"is damaged or was cut off after {where}: {error}", "damaged") from error
        if not len(block):
            break
        if not np.isfinite(block).all():
            where = f"after {samples / rate:.2f} s"
            raise AudioFileError(path, f"has a sample that is NaN or infinite, {where}", "not finite")
        samples += len(block)
        yield np.ascontiguousarray(block)
    if samples == 0:
        raise AudioFileError(path, "holds no sample", "zero-length")
