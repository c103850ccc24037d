"""Clips of audio files: in memory as far as they may be, read from their files where they are asked for beyond it."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoders.speech.audio_file import (
    AudioFileError,
    Sound,
    examined,
    expected_length,
    part_of,
    read_part,
    read_whole,
)
from encoders.speech.log_mel import SAMPLE_RATE, WINDOW
from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, counted, some
from ssql.data.unread import Unread
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

_OVERSHOOT = SAMPLE_RATE // 2  # a part may end so many samples behind its file: manifests round, Kaldi allows as much


class UnusableAudioError(ValueError):
    """One recording that cannot be used; it is skipped and counted under this reason."""


@dataclass(frozen=True, slots=True)
class Part:
    """Samples `start` to `end` of what a file is at 16,000 Hz."""

    path: Path
    start: int
    end: int


Clip = tuple[Entry, Part, Tensor | None]  # a waveform where it is kept in memory


class Clips(Unread):
    """Waveforms, float32 (samples,) at 16,000 Hz.

    Args:
        parts: where each comes from.
        held: those that are in memory; None is read from its file each time, and has the same bits.
    """

    def __init__(self, parts: Sequence[Part], held: Sequence[Tensor | None]) -> None:
        self.parts, self.held = parts, held

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.parts)

    @property
    def lengths(self) -> list[int]:
        """Samples of each clip."""
        return [part.end - part.start for part in self.parts]

    def read(self, index: int) -> Tensor:
        """One clip.

        Raises:
            AudioFileError, FileNotFoundError: the file has changed since it was looked at.
        """
        waveform, part = self.held[index], self.parts[index]
        return torch.from_numpy(read_part(part.path, part.start, part.end)) if waveform is None else waveform

    def subset(self, indices: Sequence[int]) -> "Clips":
        """Some of the clips, in the order given; none is read."""
        return Clips([self.parts[i] for i in indices], [self.held[i] for i in indices])


def read_clips(entries: Sequence[Entry], longest: int, cut: bool, cache_bytes: float) -> list[Clip]:
    """The clips of all recordings that can be used; those that are kept in memory with their waveform.

    What is skipped is known and logged before training begins. See `decoded` for arguments and errors.
    """
    clips: list[Clip] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    for entry, found in track(decoded(entries, longest, cut, cache_bytes), "reading audio", len(entries)):
        if isinstance(found, str):
            skipped[found].append(entry.name)
        else:
            clips += [(entry, part, waveform) for part, waveform in found]
    for reason, names in skipped.items():
        log.warning("skipped %s (%s): %s", counted(names), reason, some(names, 10))
    return clips


def decoded(
    entries: Sequence[Entry], longest: int, cut: bool, cache_bytes: float
) -> Iterator[tuple[Entry, list[tuple[Part, Tensor | None]] | str]]:
    """Each entry with its clips, or why it cannot be used; every file is decoded once, to its end.

    A file that is not kept in memory is decoded block by block. Entries come in the order of their files.

    Args:
        entries: recordings, or parts of them.
        longest: samples of a clip at 16,000 Hz.
        cut: whether what is longer becomes several clips; else it is skipped, because its text cannot be cut.
        cache_bytes: of waveforms in memory.

    Raises:
        ValueError: a file has another sample rate than its manifest says, or ends before the part that a row names.
    """
    files: dict[Path, list[Entry]] = defaultdict(list)
    for entry in entries:
        files[entry.path].append(entry)
    half_silent: list[str] = []

    def read(parts: list[Entry], keep: bool) -> list[tuple[Entry, list[tuple[Part, Tensor | None]] | str]]:
        found = _read(parts[0].path, keep)
        if isinstance(found, str):
            return [(entry, found) for entry in parts]
        samples, sound = found
        if sound.silent_channels:
            half_silent.append(parts[0].name)
        return [(entry, _clips(entry, samples, sound, longest, cut)) for entry in parts]

    with ThreadPoolExecutor() as pool:
        lengths = pool.map(expected_length, files) if cache_bytes else [None] * len(files)
        for found in pool.map(read, files.values(), _that_fit(lengths, cache_bytes)):
            yield from found
    if half_silent:
        log.warning(
            "silence on a channel beside sound, which the mean of channels makes softer, in %s: %s",
            counted(half_silent), some(sorted(half_silent)),
        )  # fmt: skip


def _that_fit(lengths: Iterable[int | None], cache_bytes: float) -> Iterator[bool]:
    """Whether each of the files, of so many samples, still fits into memory beside those before it."""
    for length in lengths:
        size = math.inf if length is None else 4 * length
        fits = size <= cache_bytes
        cache_bytes -= size if fits else 0
        yield fits


def _read(path: Path, keep: bool) -> tuple[np.ndarray | None, Sound] | str:
    """What a file holds, with its samples if they are to be kept; or why it cannot be used."""
    try:
        samples, sound = read_whole(path) if keep else (None, examined(path))
    except AudioFileError as error:
        return error.reason
    except OSError as error:
        return f"out of reach: {error.strerror or 'it is gone'}"
    return "all silent" if sound.silent else (samples, sound)


def _clips(
    entry: Entry, samples: np.ndarray | None, sound: Sound, longest: int, cut: bool
) -> list[tuple[Part, Tensor | None]] | str:
    try:
        parts = _cut(entry, sound, longest, cut)
    except UnusableAudioError as error:
        return str(error)
    return [(part, _waveform(samples, sound, part)) for part in parts]


def _waveform(samples: np.ndarray | None, sound: Sound, part: Part) -> Tensor | None:
    return None if samples is None else torch.from_numpy(part_of(samples, sound.rate, part.start, part.end))


def _cut(entry: Entry, sound: Sound, longest: int, cut: bool) -> list[Part]:
    if entry.sample_rate is not None and sound.rate != entry.sample_rate:
        raise ValueError(
            f"{entry.where}: {shown(entry.path)} has {sound.rate} Hz, the manifest says {entry.sample_rate} Hz"
        )
    start = round(entry.start * SAMPLE_RATE)
    end = sound.length if entry.end is None else round(entry.end * SAMPLE_RATE)
    if start >= sound.length or end > sound.length + _OVERSHOOT:
        raise ValueError(
            f"{entry.where}: {shown(entry.path)} has {sound.length / SAMPLE_RATE:.2f} s, the row names a part from "
            f"{entry.start:g} to {end / SAMPLE_RATE:g} s"
        )
    end = min(end, sound.length)
    if end - start < WINDOW:
        raise UnusableAudioError("shorter than one 25 ms frame")
    if not cut and end - start > longest:
        raise UnusableAudioError(f"longer than {longest / SAMPLE_RATE:g} s: its text cannot be cut")
    starts = range(start, end - WINDOW + 1, longest)
    return [Part(entry.path, first, min(first + longest, end)) for first in starts]
