"""Any recordings on disk, as they lie there, with labels from folders, file names or manifests."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from encoders.speech.log_mel import SAMPLE_RATE, WINDOW
from encoders.storage.paths import shown
from quant.checks import check_at_least
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.clips import Clips, read_clips
from ssql.data.entries import OF_LAYOUT, compiled, is_manifest, list_entries
from ssql.data.layouts import Entry, Layout
from ssql.data.layouts.entry import classes_and_targets
from ssql.data.module import DataModule, Split
from ssql.data.texts import Spelling

log = logging.getLogger(__name__)


class AudioFolder(DataModule):
    """Audio files of any sample rate below a folder: wav, flac, ogg, opus, mp3, aiff and what else libsndfile reads.

    The mean of their channels is resampled to 16,000 Hz. Files that cannot be read, are no regular files, cut off,
    empty, silent, not finite, at a rate that no sound has or shorter than 25 ms are skipped, counted and logged.

    Args:
        root: folder, searched recursively; links to folders are followed.
        labels: `layout` (what the layout says; in a plain folder the name of the folder that a file lies in, as task
            `class`), `folder` (this name in any layout), a .csv or .tsv file in UTF-8 (columns path and, if wanted,
            split, sample_rate and text; a column named like `pitch (Hz)` is a number to predict, in this unit, every
            other column is a task), a regular expression with named groups searched in the relative path or the id
            of an utterance (each group is a task), or null.
        test_pattern: regular expression that marks the relative paths, or ids, of the test split; without it, and
            where the layout names no splits, every tenth file is a test file. Pretraining needs none.
        max_seconds: longer recordings are cut into consecutive segments of this many seconds.
        texts: what is said, for speech recognition: `layout`, where the layout knows it; a file of lines
            `path<TAB>text`, paths relative to root; or Spelling, where the name of a class says it (`--data.texts
            Spelling --data.texts.task digit`); null when it is not known. Recordings longer than max_seconds are then
            left out.
        layout: how the recordings lie: folder, librispeech, common_voice, kaldi, huggingface or nemo; auto looks.
        cache_gib: GiB of decoded clips that are kept in memory, in each process; 1 GiB is 4.7 hours. Others are read
            from their files each time, with the same bits: num_workers above 0 reads ahead.
        common: see `DataModule`.
    """

    modality = "audio"

    def __init__(
        self,
        root: str,
        labels: str | None = OF_LAYOUT,
        test_pattern: str | None = None,
        max_seconds: float = 10.0,
        texts: str | Path | Spelling | None = None,  # a Path: jsonargparse would else read the file
        layout: Layout = "auto",
        cache_gib: float = 4.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_at_least(0, cache_gib=cache_gib)
        self.root, self.labels, self.max_seconds = Path(root), labels, max_seconds
        self.texts, self.layout, self.cache_gib = texts, layout, cache_gib
        self.test_pattern = test_pattern or None
        if self.test_pattern:
            compiled(self.test_pattern, "test_pattern")
        if not max_seconds * SAMPLE_RATE >= WINDOW:  # NaN is no length either
            raise ValueError(f"max_seconds {max_seconds} is shorter than one 25 ms frame")

    def load(self) -> dict[str, Dataset[Batch]]:
        """Look at every file once; split and label what is usable."""
        entries = self.entries()
        clips = read_clips(
            entries, int(self.max_seconds * SAMPLE_RATE), cut=self.texts is None, cache_bytes=self.cache_gib * 2**30
        )
        used = list({id(entry): entry for entry, _, _ in clips}.values())
        if not used:
            raise ValueError(
                f"none of the {len(entries)} audio files in {shown(self.root)} can be used; the log says why"
            )
        read = [part.end - part.start for _, part, held in clips if held is None]
        if read:
            hours, share = sum(read) / SAMPLE_RATE / 3600, len(read) / len(clips)
            log.info(
                "%.2f h (%.0f %% of clips) are read from their files: --data.cache_gib is full", hours, 100 * share
            )
        self.counts = {name: sum(entry.split == name for entry in used) for name in ("train", "test")}
        self.classes, self.targets = classes_and_targets([entry.labels for entry in used])
        places = {task: {name: place for place, name in enumerate(names)} for task, names in self.classes.items()}
        splits: dict[str, Dataset[Batch]] = {}
        for name in ("train", "test"):
            chosen = [clip for clip in clips if clip[0].split == name]
            of_clips = [entry for entry, _, _ in chosen]
            labels: dict[str, Sequence[float]] = {
                task: [places[task][entry.labels[task]] for entry in of_clips] for task in self.classes
            }
            labels |= {
                name: [_number(entry, f"{name} ({unit})") for entry in of_clips] for name, unit in self.targets.items()
            }
            texts = None if self.texts is None else [entry.text or "" for entry in of_clips]
            inputs = Clips([part for _, part, _ in chosen], [held for _, _, held in chosen])
            splits[name] = LabelledTensors(inputs, labels, texts)
        return splits

    def said(self) -> dict[Split, list[tuple[str, str | None]]]:
        """From the names of the files and their texts: no audio is read."""
        test = [entry for entry in self.entries() if entry.split == "test"]
        return {"test": [(entry.name, None if self.texts is None else entry.text) for entry in test]}

    def entries(self) -> list[Entry]:
        """The recordings with their labels, splits and texts; no audio is read."""
        return list_entries(self.root, self.layout, self.labels, self.texts, self.test_pattern)

    def empty_split(self, split: Split) -> str:
        """How a folder gets files for a split that has none."""
        usable = sum(self.counts.values())
        files = f"{shown(self.root)} has {usable} usable file{'s' * (usable != 1)}"
        if self.test_pattern:
            return f"{files}, and test_pattern {self.test_pattern!r} leaves none for the {split} split"
        if is_manifest(self.labels):
            how = "mark files with a split column or --data.test_pattern"
            return f"{files}, and none of them is in the {split} split: {how}"
        if usable >= 10:
            return f"{files}, and none of them is in the {split} split: mark test files with --data.test_pattern"
        return (
            f"{files}, which leave no {split} split: every tenth file is a test file, so give at least 10, or mark "
            "test files with test_pattern"
        )


def _number(entry: Entry, column: str) -> float:
    with suppress(ValueError):
        number = float(entry.labels[column])
        if math.isfinite(number):
            return number
    raise ValueError(f"{entry.where}: {column} is {entry.labels[column]!r}, not a finite number")
