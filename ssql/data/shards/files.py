"""Files inside of shards, each read alone."""

import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.storage.paths import shown
from ssql.data.shards.tar import AGAIN, Item, ShardError, read_items


class PackedFiles:
    """Where items are, in 48 bytes of memory each, and what is there.

    Args:
        shards: the tar files.
        places: int64, shape (items, 6): shard, offset, size and checksum of the item's file, first sample and end.
    """

    def __init__(self, shards: Sequence[Path], places: np.ndarray) -> None:
        self.shards, self.places = list(shards), places

    def __len__(self) -> int:
        """Number of items."""
        return len(self.places)

    def take(self, indices: Sequence[int]) -> "PackedFiles":
        """Some of the items, in the order given; none is read."""
        return PackedFiles(self.shards, self.places[list(indices)])

    @property
    def spans(self) -> np.ndarray:
        """First sample of each item in its file, and behind its last one, shape (items, 2)."""
        return self.places[:, 4:]

    def content(self, index: int) -> tuple[Path, bytes]:
        """The file of an item, as it was packed, and a name for messages.

        Raises:
            ShardError: the shard is gone or damaged.
        """
        shard, offset, size, crc32 = self.places[index, :4].tolist()
        path = self.shards[shard]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ShardError(f"shard {shown(path)} cannot be read: {error.strerror}; {AGAIN}") from error
        if zlib.crc32(content) != crc32:
            name = next((item.name for item in read_items(path) if item.offset == offset), "")
            raise ShardError(f"shard {shown(path)} is damaged where it holds {name}: {AGAIN}")
        return path / f"byte {offset}", content


class Places:
    """Rows of `PackedFiles`, gathered one by one."""

    def __init__(self) -> None:
        self.rows = array("q")

    def add(self, shard: int, item: Item, start: int, end: int) -> None:
        """One more item, which may be a part of a packed one."""
        self.rows.extend((shard, item.offset, item.size, item.crc32, start, end))

    def table(self) -> np.ndarray:
        """All of them, shape (items, 6)."""
        return np.frombuffer(self.rows, np.int64).reshape(-1, 6) if self.rows else np.zeros((0, 6), np.int64)
