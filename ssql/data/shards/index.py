"""What a folder of shards holds, as its index says."""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from encoders.storage.paths import kind_of, shown
from encoders.storage.strict_json import read_strict_json
from ssql.data.shards.tar import AGAIN, FORMAT, Item, ShardError, read_items

INDEX = "index.json"
_NAME = re.compile(r"\w+-\d{6}\.tar")


@dataclass(frozen=True)
class Shards:
    """The shards of a folder.

    Attributes:
        root: the folder.
        classes: task name to class names in label order.
        targets: name of a number to predict to its unit.
        paths: of the tar files, by split.
    """

    root: Path
    classes: dict[str, list[str]]
    targets: dict[str, str]
    paths: dict[str, list[Path]]

    def label_columns(self) -> "dict[str, array[Any]]":
        """An empty column for each task: places of classes, numbers to predict."""
        return {name: array("q") for name in self.classes} | {name: array("d") for name in self.targets}

    def append_answers(self, item: Item, columns: "dict[str, array[Any]]") -> None:
        """Add the labels of an item to the columns.

        Raises:
            ShardError: the index does not know them.
        """
        try:
            for task in self.classes:
                columns[task].append(self._places[task][item.labels[task]])
            for name, unit in self.targets.items():
                columns[name].append(float(item.labels[f"{name} ({unit})"]))
        except (KeyError, ValueError):
            raise ShardError(f"{shown(self.root / INDEX)} does not know the labels of {item.name}: {AGAIN}") from None

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        return {task: {name: place for place, name in enumerate(names)} for task, names in self.classes.items()}

    def items(self, split: str) -> Iterator[tuple[int, Item]]:
        """Every item of a split, with the place of its shard.

        Raises:
            ShardError: the lines of a shard are missing or damaged.
        """
        return ((place, item) for place, path in enumerate(self.paths[split]) for item in read_items(path))


def open_shards(root: Path, modality: str) -> Shards:
    """Read the index of a folder, and see that each shard is as long as it says.

    Args:
        root: the folder.
        modality: `audio` or `image`, which it must hold.

    Raises:
        FileNotFoundError: no such folder.
        ShardError: no index, as where nothing was packed or not to the end; a damaged one; other content; no shards, or
            one that is missing or has another length.
    """
    index = _read(root)
    if index.get("format") != FORMAT:
        raise ShardError(
            f"{shown(root / INDEX)} has format {index.get('format')}, this version reads {FORMAT}: {AGAIN}"
        )
    if index.get("modality") != modality:
        other = {"audio": "AudioShards", "image": "ImageShards"}.get(str(index.get("modality")), "other data")
        raise ShardError(
            f"{shown(root)} holds shards of {index.get('modality')}, not of {modality}: take --data {other}"
        )
    try:
        classes = {str(task): [str(name) for name in names] for task, names in index["classes"].items()}
        targets = {str(name): str(unit) for name, unit in index["targets"].items()}
        shards = [(str(it["split"]), root / _NAME.fullmatch(it["name"])[0], int(it["bytes"])) for it in index["shards"]]  # type: ignore[index]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ShardError(f"{shown(root / INDEX)} is damaged: {AGAIN}") from None
    if not shards:
        raise ShardError(f"{shown(root)} lists no shards: {AGAIN}")
    paths: dict[str, list[Path]] = {"train": [], "test": []}
    for split, path, size in shards:
        kind = kind_of(path)
        if kind is not None:
            raise ShardError(f"shard {shown(path)} is {kind}: {AGAIN}")
        if path.stat().st_size != size:
            raise ShardError(
                f"shard {shown(path)} is damaged: it has {path.stat().st_size:,} bytes, not {size:,}; {AGAIN}"
            )
        paths.setdefault(split, []).append(path)
    return Shards(root, classes, targets, paths)


def _read(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise FileNotFoundError(f"folder of shards {shown(root)} does not exist")
    if not (root / INDEX).exists():
        begun = any(root.glob("*.jsonl"))
        what = "is not packed to its end" if begun else "holds no shards: there is no index.json"
        how = (
            "run the same `ssql pack` again, which goes on"
            if begun
            else f"write them with `ssql pack --data.root {shown(root)} --output SHARDS` if it holds recordings"
        )
        raise ShardError(f"{shown(root)} {what}; {how}")
    try:
        index = read_strict_json(root / INDEX)
    except ValueError as error:
        raise ShardError(f"{error}: {AGAIN}") from error
    if not isinstance(index, dict):
        raise ShardError(f"{shown(root / INDEX)} is damaged: {AGAIN}")
    return index
