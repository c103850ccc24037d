"""Audio files, decoded here and nowhere else: whole, block by block at any length, or one part.

The channels of a recording are averaged, as ffmpeg does for Whisper (`-ac 1`): whoever speaks on one of them is heard.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from encoders.speech.resampling import resampled, resampled_length, resampled_part
from encoders.storage.paths import kind_of, shown

log = logging.getLogger(__name__)

RATES = (1_000, 768_000)  # Hz that are taken: below there is no speech, above a header is damaged
# Names that libsndfile reads, and names of sound and video that it does not: of the two, such a file may be either.
READ = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".sph", ".nist", ".voc", ".mp2",
)  # fmt: skip
NOT_READ = (
    ".m4a", ".m4b", ".aac", ".wma", ".amr", ".ape", ".wv", ".ac3", ".mka", ".3gp", ".spx", ".tta", ".mp4", ".m4v",
    ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".ts", ".flv",
)  # fmt: skip
AUDIO_NAMES = frozenset(READ + NOT_READ)
# A decoder that goes to a sample of these gives the same bits as one that came there; others carry a state along.
_SEEK_EXACTLY = re.compile(r"PCM_.*|FLOAT|DOUBLE|U?A?LAW|VORBIS|ALAC_.*")
# What libsndfile says of a header that promises more bytes than there are.
_CUT_OFF = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")
# Written by programs that do not know the length yet: 2^31 or 2^32, less a header; libsndfile itself says 2^63 - 1.
_UNKNOWN_LENGTH = 2**31 - 2**16
_LARGEST_BLOCK = 2**24  # values of all channels, which a header may say there are a thousand of
_BLOCK_SECONDS = 10.0
_PAGE = 2**17  # bytes at the end of a file that hold its last Ogg page, of 65,307 at most
_SILENT = 1e-3  # of the loudest channel's peak: -60 dB, where a channel nobody speaks into lies


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


@dataclass(frozen=True)
class Sound:
    """What an audio file turned out to hold when it was decoded to its end.

    Attributes:
        rate: in Hz.
        samples: at this rate.
        peaks: the largest absolute value of each channel.
    """

    rate: int
    samples: int
    peaks: tuple[float, ...]

    @property
    def length(self) -> int:
        """Samples at 16,000 Hz."""
        return resampled_length(self.samples, self.rate)

    @property
    def silent(self) -> bool:
        """Whether no channel sounds."""
        return max(self.peaks) == 0

    @property
    def silent_channels(self) -> list[int]:
        """Channels that are silent beside one that sounds: the mean makes that one softer."""
        return [place for place, peak in enumerate(self.peaks) if peak < _SILENT * max(self.peaks)]


def read_blocks(path: str | Path, seconds: float = _BLOCK_SECONDS) -> Iterator[np.ndarray]:
    """The mean of the channels of an audio file at 16,000 Hz, resampled on the fly as torchaudio resamples the whole.

    A channel that is silent beside a sounding one is logged as a warning.

    Args:
        path: wav, flac, ogg, opus, mp3, aiff and what else libsndfile reads.
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
        peaks = np.zeros(file.channels, np.float32)
        yield from resampled(_mean_of_channels(file, path, peaks, seconds), file.samplerate)
        sound = Sound(file.samplerate, 0, tuple(peaks.tolist()))
    if sound.silent_channels:
        log.warning("%s", silent_channels_sentence(path, sound))


def read_whole(path: str | Path) -> tuple[np.ndarray, Sound]:
    """The mean of the channels of an audio file at its own rate, and what the file holds.

    Returns:
        float32, shape (samples,), in [-1, 1]; see `Sound`.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: as `read_blocks`.
    """
    blocks: list[np.ndarray] = []
    sound = _decoded(Path(path), blocks.append)
    return np.concatenate(blocks), sound


def read_audio(path: str | Path) -> np.ndarray:
    """The mean of the channels of an audio file at 16,000 Hz, whole.

    Returns:
        float32, shape (samples,), in [-1, 1].

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: as `read_blocks`.
    """
    samples, sound = read_whole(path)
    return part_of(samples, sound.rate, 0, sound.length)


def expected_length(path: str | Path) -> int | None:
    """Samples at 16,000 Hz as the file's header has it, not decoded; None where it does not say, or is no audio."""
    try:
        with opened(Path(path)) as file:
            return resampled_length(file.frames, file.samplerate) if file.frames < _UNKNOWN_LENGTH else None
    except (AudioFileError, OSError):
        return None


def examined(path: str | Path) -> Sound:
    """What an audio file holds, decoded to its end with one block in memory.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: as `read_blocks`.
    """
    return _decoded(Path(path), len)


def _decoded(path: Path, take: Callable[[np.ndarray], object]) -> Sound:
    """What a file holds, after each block of it was given to `take`."""
    samples = 0
    with opened(path) as file:
        peaks = np.zeros(file.channels, np.float32)
        for block in _mean_of_channels(file, path, peaks):
            take(block)
            samples += len(block)
        return Sound(file.samplerate, samples, tuple(peaks.tolist()))


def read_part(path: str | Path, start: int, end: int, content: bytes | None = None) -> np.ndarray:
    """Samples `start` to `end` of what an audio file is at 16,000 Hz; only they and their neighbours are decoded.

    Formats whose decoder carries a state along (mp3, opus) are decoded from the beginning, block by block.

    Args:
        path: of the file.
        start: first sample at 16,000 Hz.
        end: behind the last one, at most the `Sound.length` of the file.
        content: of the file, where it is in memory; the path is then its name in messages.

    Returns:
        float32, shape (end - start,): bit by bit `part_of` the whole.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: as `read_blocks`, or the file is shorter than it was.
    """
    path = Path(path)
    with opened(path, content) as file:

        def read(first: int, last: int) -> np.ndarray:
            place = first if _SEEK_EXACTLY.fullmatch(file.subtype) else 0
            if place:
                file.seek(place)
            parts = []
            for block in _mean_of_channels(file, path, np.zeros(file.channels, np.float32), start=place):
                parts.append(block[max(0, first - place) : last - place])
                place += len(block)
                if place >= last:
                    break
            return np.concatenate(parts)

        samples = resampled_part(read, file.samplerate, start, end)
    if len(samples) < end - start:
        raise AudioFileError(path, "is shorter than it was: it changed while it was in use", "changed")
    return samples


def part_of(samples: np.ndarray, rate: int, start: int, end: int) -> np.ndarray:
    """As `read_part`, of a recording in memory: samples at `rate` Hz, float32 (samples,)."""
    return resampled_part(lambda first, last: samples[first:last], rate, start, end)


def silent_channels_sentence(path: Path, sound: Sound) -> str:
    """Which channels of a recording are silent beside a sounding one, and what that does."""
    silent = sound.silent_channels
    which = f"channel {silent[0]} is" if len(silent) == 1 else f"channels {', '.join(map(str, silent))} are"
    return (
        f"{shown(path)}: {which} silent, of {len(sound.peaks)} counted from 0; the mean of all is taken, which is "
        "softer than the one that sounds"
    )


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[soundfile.SoundFile]:
    """An audio file that looks usable from its header, open.

    Args:
        path: of the file.
        content: of the file, where it is in memory; the path is then its name in messages.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: no regular file, unreadable, cut off, or at a rate that no sound has.
    """
    kind = kind_of(path) if content is None else None
    if kind == "missing":
        raise FileNotFoundError(f"{shown(path)} does not exist")
    if kind is not None:
        raise AudioFileError(path, f"is {kind}, not an audio file", kind)
    try:
        # The name's own bytes: it may not be UTF-8.
        file = _Forward(os.fsencode(path) if content is None else io.BytesIO(content))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        if content is None and not os.access(path, os.R_OK):
            raise AudioFileError(path, "may not be read: its permissions forbid it", "not permitted") from error
        about = str(error).rpartition(": ")[2]
        sentence = f"is no audio file that libsndfile reads (wav, flac, ogg, opus, mp3, aiff, ...): {about}"
        if (ending := path.suffix.lower()) in NOT_READ:
            sentence += f"; make it one, as with: ffmpeg -i {shown(path.name)} {shown(path.stem)}.flac"
            raise AudioFileError(path, sentence, f"{ending} is no format that is read") from error
        raise AudioFileError(path, sentence, "unreadable") from error
    with file:
        if not RATES[0] <= file.samplerate <= RATES[1]:
            allowed = f"{RATES[0]:,} to {RATES[1]:,} Hz"
            sentence = f"says its rate is {file.samplerate:,} Hz: {allowed} are read, so its header is damaged"
            raise AudioFileError(path, sentence, f"rate outside {allowed}")
        _check_whole(file, path, content)
        yield file


class _Forward(soundfile.SoundFile):
    """A file that is read forward.

    soundfile seeks to where it is after every block; the decoder of mp3 loses its state by that, and the first
    samples of each block are wrong.
    """

    def seekable(self) -> bool:
        return False


def _check_whole(file: soundfile.SoundFile, path: Path, content: bytes | None) -> None:
    """Raise AudioFileError where the end of a file is missing, as far as that shows without decoding it."""
    lengths = _CUT_OFF.search(file.extra_info)
    if lengths is not None and int(lengths[2]) < int(lengths[1]) < _UNKNOWN_LENGTH:
        promised = f"its header promises {lengths[1]} bytes of samples, {lengths[2]} are there"
        raise AudioFileError(path, f"was cut off: {promised}", "cut off")
    if "truncated file" in file.extra_info:
        raise AudioFileError(path, "was cut off: it ends before its header says", "cut off")
    if file.format == "OGG" and not _last_page_is_whole(_tail_of(path) if content is None else content[-_PAGE:]):
        raise AudioFileError(path, "was cut off: the last page of its Ogg stream ends in the middle", "cut off")


def _tail_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PAGE))
        return file.read()


def _last_page_is_whole(tail: bytes) -> bool:
    """Whether what stands behind the last Ogg page's header is as long as it says (RFC 3533, 6)."""
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 0
    return len(page) >= 27 + segments and len(page) >= 27 + segments + sum(page[27 : 27 + segments])


def _mean_of_channels(
    file: soundfile.SoundFile, path: Path, peaks: np.ndarray, seconds: float = _BLOCK_SECONDS, start: int = 0
) -> Iterator[np.ndarray]:
    """Blocks of the mean, float32 (samples,), to the end; `peaks`, (channels,), grow to the largest absolute values.

    `start` is where the file stands, in samples.
    """
    samples, rate = start, file.samplerate
    frames = max(1, min(round(seconds * rate), _LARGEST_BLOCK // file.channels))

    def where() -> str:
        return f"{samples / rate:.2f} of {file.frames / rate:.2f} s"

    while True:
        try:
            block = file.read(frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioFileError(path, f"is damaged or was cut off after {where()}: {error}", "damaged") from error
        if not len(block):
            break
        if not np.isfinite(block).all():
            place = f"after {samples / rate:.2f} s"
            raise AudioFileError(path, f"has a sample that is NaN or infinite, {place}", "not finite")
        np.maximum(peaks, np.abs(block).max(axis=0), out=peaks)
        samples += len(block)
        yield np.ascontiguousarray(block[:, 0] if file.channels == 1 else block.mean(axis=1))
    if samples == 0:
        raise AudioFileError(path, "holds no sample", "zero-length")
    if samples < file.frames < _UNKNOWN_LENGTH:
        raise AudioFileError(path, f"was cut off after {where()}", "cut off")
