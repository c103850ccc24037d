"""Images in shards that `ssql pack` wrote: as many as there are, decoded when they are asked for."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from encoders.storage.paths import shown
from quant.checks import check_at_least
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.image_file import decoded_image, square
from ssql.data.module import DataModule, Split
from ssql.data.shards.files import PackedFiles, Places
from ssql.data.shards.index import Shards, open_shards
from ssql.data.unread import Unread


class ImageShards(DataModule):
    """Image files in shards of `ssql pack`; each is read and decoded when its batch is made, by num_workers processes.

    Splits and classes are those of the folder, and so are the images and their order: a run on shards ends with the
    weights of a run on the folder.

    Args:
        root: folder of the shards.
        image_size: height and width in pixels; of other images the middle is cut out and resized.
        grey: one channel instead of three.
        common: see `DataModule`.
    """

    modality = "image"

    def __init__(self, root: str, image_size: int = 32, grey: bool = False, **common: Any) -> None:
        super().__init__(**common)
        check_at_least(1, image_size=image_size)
        self.root, self.image_size, self.grey = Path(root), image_size, grey

    def load(self) -> dict[str, Dataset[Batch]]:
        """Read what the shards hold; no image."""
        shards = open_shards(self.root, "image")
        self.classes, self.targets = shards.classes, shards.targets
        return {split: self._split(shards, split) for split in shards.paths}

    def empty_split(self, split: Split) -> str:
        """How shards get images for a split that has none."""
        return f"{shown(self.root)} has no image in the {split} split: pack a folder that has"

    def _split(self, shards: Shards, split: str) -> LabelledTensors:
        places, labels = Places(), shards.label_columns()
        for shard, item in shards.items(split):
            places.add(shard, item, 0, 0)
            shards.append_answers(item, labels)
        files = PackedFiles(shards.paths[split], places.table())
        return LabelledTensors(ShardImages(files, self.image_size, self.grey), labels)


class ShardImages(Unread):
    """Images, uint8 (channels, size, size), each read from its shard where it is asked for.

    Args:
        files: where they are.
        size: height and width in pixels.
        grey: one channel instead of three.
    """

    def __init__(self, files: PackedFiles, size: int, grey: bool) -> None:
        self.files, self.size, self.grey = files, size, grey

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    @property
    def lengths(self) -> None:
        """Images have none."""

    def read(self, index: int) -> Tensor:
        """One image.

        Raises:
            ShardError: the shard is gone or damaged.
        """
        name, content = self.files.content(index)
        return square(decoded_image(io.BytesIO(content), name, self.grey), self.size)

    def subset(self, indices: Sequence[int]) -> "ShardImages":
        """Some of the images, in the order given; none is read."""
        return ShardImages(self.files.take(indices), self.size, self.grey)
