"""Clips in shards that `ssql pack` wrote: as many hours as there are, in the memory of a few."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from encoders.speech.audio_file import read_part
from encoders.speech.log_mel import SAMPLE_RATE, WINDOW
from encoders.storage.paths import shown
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.module import DataModule, Split
from ssql.data.shards.files import PackedFiles, Places
from ssql.data.shards.index import Shards, open_shards
from ssql.data.unread import Unread

log = logging.getLogger(__name__)


class AudioShards(DataModule):
    """Audio files in shards of `ssql pack`; each is read and decoded when its batch is made, by num_workers processes.

    Splits, labels and texts are those that the shards were packed with. Clips and their order are those of the folder,
    so that a run on shards ends with the weights of a run on the folder.

    Args:
        root: folder of the shards.
        max_seconds: longer recordings are cut into consecutive clips of this many seconds.
        texts: `layout`, for speech recognition: clips have the texts that they were packed with, and recordings longer
            than max_seconds are left out, because their text cannot be cut.
        common: see `DataModule`.
    """

    modality = "audio"

    def __init__(
        self, root: str, max_seconds: float = 10.0, texts: Literal["layout"] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        if not max_seconds * SAMPLE_RATE >= WINDOW:  # NaN is no length either
            raise ValueError(f"max_seconds {max_seconds} is shorter than one 25 ms frame")
        self.root, self.max_seconds, self.texts = Path(root), max_seconds, texts

    def load(self) -> dict[str, Dataset[Batch]]:
        """Read what the shards hold; no audio."""
        shards = open_shards(self.root, "audio")
        self.classes, self.targets = shards.classes, shards.targets
        return {split: self._split(shards, split) for split in shards.paths}

    def said(self) -> dict[Split, list[tuple[str, str | None]]]:
        """From the lines beside the shards: no audio is read."""
        items = open_shards(self.root, "audio").items("test")
        return {"test": [(item.name, None if self.texts is None else item.text) for _, item in items]}

    def empty_split(self, split: Split) -> str:
        """How shards get clips for a split that has none."""
        return f"{shown(self.root)} has no clip in the {split} split: pack its folder with --data.test_pattern"

    def _split(self, shards: Shards, split: str) -> LabelledTensors:
        longest, too_long = int(self.max_seconds * SAMPLE_RATE), 0
        places, texts = Places(), list[str]()
        labels = shards.label_columns()
        for shard, item in shards.items(split):
            if self.texts is not None and item.end - item.start > longest:
                too_long += 1
                continue
            if self.texts is not None and item.text is None:
                raise ValueError(f"{shown(self.root)} has no text for {item.name}: leave --data.texts out, or add it")
            for start in range(item.start, item.end - WINDOW + 1, longest):
                places.add(shard, item, start, min(start + longest, item.end))
                shards.append_answers(item, labels)
                if self.texts is not None:
                    texts.append(item.text or "")
        if too_long:
            log.warning("skipped %d recordings longer than %g s: their text cannot be cut", too_long, self.max_seconds)
        clips = ShardClips(PackedFiles(shards.paths[split], places.table()))
        return LabelledTensors(clips, labels, None if self.texts is None else texts)


class ShardClips(Unread):
    """Waveforms, float32 (samples,) at 16,000 Hz, each read from its shard where it is asked for.

    Args:
        files: where they are.
    """

    def __init__(self, files: PackedFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """One clip.

        Raises:
            ShardError: the shard is gone or damaged.
        """
        start, end = self.files.spans[index].tolist()
        name, content = self.files.content(index)
        return torch.from_numpy(read_part(name, start, end, content))

    @property
    def lengths(self) -> list[int]:
        """Samples of each clip."""
        spans = self.files.spans
        return (spans[:, 1] - spans[:, 0]).tolist()  # type: ignore[no-any-return]

    def subset(self, indices: Sequence[int]) -> "ShardClips":
        """Some of the clips, in the order given; none is read."""
        return ShardClips(self.files.take(indices))
