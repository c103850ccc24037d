"""Any folder of audio files, with labels from folders, file names or a CSV manifest."""

import csv
import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from encoders.speech.audio_file import AudioFileError, read_whole, resampled_whole
from encoders.speech.log_mel import SAMPLE_RATE, WINDOW
from encoders.storage.paths import kind_of, shown
from encoders.storage.strict_json import read_text
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.module import DataModule, Split
from ssql.data.texts import Spelling, read_transcripts
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

EXTENSIONS = (".wav", ".flac", ".ogg")
# Column of a manifest that holds a number to predict: `pitch (Hz)`.
_TARGET = re.compile(r"(?P<name>.+) \((?P<unit>[^()]+)\)")


class UnusableAudioError(ValueError):
    """One file that cannot be used; it is skipped and counted under this reason."""


@dataclass
class Entry:
    """A file, its labels as text and, when known beforehand, its split and sample rate."""

    path: Path
    labels: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    sample_rate: int | None = None
    row: int | None = None
    text: str | None = None


class AudioFolder(DataModule):
    """wav, flac and ogg files of any sample rate below a folder; channel 0, resampled to 16,000 Hz, kept in memory.

    Files that cannot be read, are no regular files, cut off, empty, silent, not finite, at a rate that no sound has or
    shorter than 25 ms are skipped, counted and logged.

    Args:
        root: folder, searched recursively.
        labels: `folder` (the parent folder's name is the label of task `class`), a CSV file in UTF-8 (columns path
            and, if wanted, split and sample_rate; a column named like `pitch (Hz)` is a number to predict, in this
            unit, every other column is a task), a regular expression with named groups searched in the relative path
            (each group is a task), or null.
        test_pattern: regular expression that marks the relative paths of the test split; without it (and
            without a split column) every tenth file is a test file. Pretraining needs none.
        max_seconds: longer files are cut into consecutive segments of this many seconds.
        texts: what is said, for speech recognition: a file of lines `path<TAB>text`, paths relative to root; or
            Spelling, where the name of a class says it (`--data.texts Spelling --data.texts.task digit`); null when it
            is not known. Files longer than max_seconds are then left out.
        common: see `DataModule`.
    """

    modality = "audio"

    def __init__(
        self,
        root: str,
        labels: str | None = "folder",
        test_pattern: str | None = None,
        max_seconds: float = 10.0,
        texts: str | Path | Spelling | None = None,  # a Path: jsonargparse would else read the file
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.labels, self.max_seconds = Path(root), labels, max_seconds
        self.texts = texts
        self.test_pattern = _compiled(test_pattern, "test_pattern") if test_pattern else None
        if not max_seconds * SAMPLE_RATE >= WINDOW:  # NaN is no length either
            raise ValueError(f"max_seconds {max_seconds} is shorter than one 25 ms frame")

    def load(self) -> dict[str, Dataset[Batch]]:
        """Read every file once; split and label what is usable."""
        entries = self._entries()
        waveforms = self._read_all(entries)
        used = [(entry, waveform) for entry, waveform in zip(entries, waveforms, strict=True) if waveform is not None]
        if not used:
            raise ValueError(
                f"none of the {len(entries)} audio files in {shown(self.root)} can be used; the log says why"
            )
        self.counts = {name: sum(entry.split == name for entry, _ in used) for name in ("train", "test")}
        targets = {name: match for name in used[0][0].labels if (match := _TARGET.fullmatch(name))}
        self.targets = {match["name"]: match["unit"] for match in targets.values()}
        tasks = [name for name in used[0][0].labels if name not in targets]
        self.classes = {task: sorted({entry.labels[task] for entry, _ in used}) for task in tasks}
        length = int(self.max_seconds * SAMPLE_RATE)
        segments = [
            (entry, part)
            for entry, whole in used
            for part in whole.split(min(length, len(whole)))
            if len(part) >= WINDOW
        ]
        splits: dict[str, Dataset[Batch]] = {}
        for name in ("train", "test"):
            chosen = [(entry, segment) for entry, segment in segments if entry.split == name]
            entries, clips = [entry for entry, _ in chosen], [segment for _, segment in chosen]
            labels: dict[str, Sequence[float]] = {
                task: [self.classes[task].index(entry.labels[task]) for entry in entries] for task in tasks
            }
            labels |= {
                match["name"]: [_number(entry, column) for entry in entries] for column, match in targets.items()
            }
            texts = None if self.texts is None else [entry.text or "" for entry in entries]
            splits[name] = LabelledTensors(clips, labels, texts)
        return splits

    def said(self) -> dict[Split, list[tuple[str, str | None]]]:
        """From the names of the files and their texts: no audio is read."""
        entries = [entry for entry in self._entries() if entry.split == "test"]
        return {"test": [(self._relative(entry.path), entry.text) for entry in entries]}

    def _entries(self) -> list[Entry]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"audio folder {shown(self.root)} does not exist")
        if self._has_manifest:
            entries = _read_manifest(Path(str(self.labels)), self.root)
        else:
            paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS)
            if not paths:
                raise ValueError(f"audio folder {shown(self.root)} has no {', '.join(EXTENSIONS)} file")
            entries = [Entry(path, self._labels(path)) for path in paths]
        self._add_texts(entries)
        for index, entry in enumerate(entries):
            if self.test_pattern:
                entry.split = "test" if self.test_pattern.search(self._relative(entry.path)) else "train"
            elif entry.split is None:
                entry.split = "test" if index % 10 == 9 else "train"
        return entries

    @property
    def _has_manifest(self) -> bool:
        return self.labels is not None and self.labels.endswith(".csv")

    def _relative(self, path: Path) -> str:
        return shown(path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path)

    def _labels(self, path: Path) -> dict[str, str]:
        if self.labels is None:
            return {}
        if self.labels == "folder":
            return {"class": shown(path.parent.name)}
        pattern, name = _compiled(self.labels, "labels"), self._relative(path)
        if not pattern.groupindex:
            raise ValueError(f"labels {self.labels!r} has no named group: write like (?P<speaker>[a-z]+)_")
        match = pattern.search(name)
        if not match:
            raise ValueError(f"file {name} does not match labels {self.labels!r}")
        found = match.groupdict()
        if None in found.values():
            absent = next(group for group, text in found.items() if text is None)
            raise ValueError(
                f"file {name} gives labels {self.labels!r} no {absent}: that group is optional, and every file needs a "
                "label"
            )
        return found

    def _add_texts(self, entries: Sequence[Entry]) -> None:
        if self.texts is None:
            return
        transcripts = {} if isinstance(self.texts, Spelling) else read_transcripts(Path(self.texts))
        missing = []
        for entry in entries:
            name = self._relative(entry.path)
            entry.text = self.texts.text(entry.labels) if isinstance(self.texts, Spelling) else transcripts.get(name)
            if entry.text is None:
                missing.append(name)
        if missing:
            raise ValueError(
                f"transcript file {self.texts} has no line for {len(missing)} of {len(entries)} audio files, the first "
                f"of them {missing[0]}; a line is PATH<TAB>TEXT, with the path as it is below the folder"
            )

    def _read_all(self, entries: list[Entry]) -> list[Tensor | None]:
        skipped: dict[str, list[str]] = defaultdict(list)

        def read(entry: Entry) -> Tensor | None:
            try:
                waveform = read_audio(entry.path, entry.sample_rate)
                if self.texts is not None and len(waveform) > self.max_seconds * SAMPLE_RATE:
                    raise UnusableAudioError(f"longer than {self.max_seconds:g} s: its text cannot be cut")
                return waveform
            except UnusableAudioError as error:
                skipped[str(error)].append(self._relative(entry.path))
                return None
            except ValueError as error:
                raise ValueError(f"manifest row {entry.row}: {error}") from None

        with ThreadPoolExecutor() as pool:
            results = pool.map(read, entries)
            waveforms = list(track(results, "reading audio", len(entries)))
        for reason, names in skipped.items():
            log.warning(
                "skipped %d files (%s): %s", len(names), reason, ", ".join(names[:3]) + " ..." * (len(names) > 3)
            )
        return waveforms

    def empty_split(self, split: Split) -> str:
        """How a folder gets files for a split that has none."""
        usable = sum(self.counts.values())
        files = f"{shown(self.root)} has {usable} usable file{'s' * (usable != 1)}"
        if self.test_pattern:
            return f"{files}, and test_pattern {self.test_pattern.pattern!r} leaves none for the {split} split"
        if self._has_manifest:
            return f"{files}, and none of them is in the {split} split: mark files with a split column or test_pattern"
        return (
            f"{files}, which leave no {split} split: every tenth file is a test file, so give at least 10, or mark "
            "test files with test_pattern"
        )


def read_audio(path: Path, sample_rate: int | None = None) -> Tensor:
    """Channel 0 of an audio file at 16,000 Hz, shape (samples,), float32.

    Args:
        path: wav, flac or ogg.
        sample_rate: what a manifest says the file has, in Hz.

    Raises:
        UnusableAudioError: no regular file, unreadable, cut off, empty, silent, not finite, at a rate that no sound
            has, or shorter than one 25 ms frame.
        ValueError: the file's sample rate is another than `sample_rate`.
    """
    try:
        samples, rate = read_whole(path)
    except AudioFileError as error:
        raise UnusableAudioError(error.reason) from error
    except OSError as error:
        raise UnusableAudioError(f"out of reach: {error.strerror or 'it is gone'}") from error
    if sample_rate is not None and rate != sample_rate:
        raise ValueError(f"{shown(path)} has {rate} Hz, the manifest says {sample_rate} Hz")
    waveform = torch.from_numpy(samples)
    if waveform.abs().max() == 0:
        raise UnusableAudioError("all silent")
    waveform = resampled_whole(waveform, rate)
    if len(waveform) < WINDOW:
        raise UnusableAudioError("shorter than one 25 ms frame")
    return waveform


def _number(entry: Entry, column: str) -> float:
    with suppress(ValueError):
        number = float(entry.labels[column])
        if math.isfinite(number):
            return number
    raise ValueError(f"manifest row {entry.row}: {column} is {entry.labels[column]!r}, not a finite number")


def _compiled(pattern: str, argument: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} {pattern!r} is not a regular expression: {error}") from None


def _read_manifest(manifest: Path, root: Path) -> list[Entry]:
    try:
        lines = csv.reader(io.StringIO(read_text(manifest), newline=""), strict=True)
        rows = [(lines.line_num, row) for row in lines if row]
    except FileNotFoundError:
        raise FileNotFoundError(f"manifest {shown(manifest)} does not exist") from None
    except csv.Error as error:
        raise ValueError(f"manifest {shown(manifest)} row {lines.line_num} is not CSV: {error}") from None
    header = rows[0][1] if rows else []
    if "path" not in header or len(rows) < 2:
        raise ValueError(f"manifest {shown(manifest)} needs a header with the column path, and at least one row")
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"manifest {shown(manifest)} needs columns with names, all different; it has {header}")
    entries = []
    for number, fields in rows[1:]:
        where = f"manifest {shown(manifest)} row {number}"
        if len(fields) != len(header):
            raise ValueError(f"{where} has {len(fields)} fields, the header has {len(header)}: {', '.join(header)}")
        row = dict(zip(header, fields, strict=True))
        path = root / row.pop("path")
        kind = kind_of(path)
        if kind == "missing":
            raise ValueError(f"{where}: {shown(path)} does not exist")
        if kind is not None:
            raise ValueError(f"{where}: {shown(path)} is {kind}, not an audio file")
        split, rate = row.pop("split", None), row.pop("sample_rate", None)
        if split not in (None, "train", "test"):
            raise ValueError(f"{where}: split is {split!r}, not train or test")
        if rate and not (rate.isascii() and rate.isdigit()):
            raise ValueError(f"{where}: sample_rate is {rate!r}, not a whole number of Hz")
        entries.append(Entry(path, row, split, int(rate) if rate else None, number))
    return entries
