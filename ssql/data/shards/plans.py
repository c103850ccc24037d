"""Which files go into which shard: known before any is read, so that a pack that was stopped goes on."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.storage.paths import kind_of
from ssql.data.layouts.entry import Entry
from ssql.data.shards.tar import FORMAT


@dataclass(frozen=True)
class Plan:
    """One shard: files with their numbers and entries."""

    split: str
    path: Path
    files: list[tuple[int, list[Entry]]]

    @property
    def entries(self) -> list[Entry]:
        """Of all files, in their order."""
        return [entry for _, entries in self.files for entry in entries]


def plans_of(entries: Sequence[Entry], output: Path, shard_bytes: int) -> list[Plan]:
    """Shards of each split, `train-000000.tar`, ...; files stay in their order, and the parts of a file together."""
    files: dict[Path, list[Entry]] = defaultdict(list)
    for entry in entries:
        files[entry.path].append(entry)
    splits: dict[str, dict[Path, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for path, of_file in files.items():
        for entry in of_file:
            splits[str(entry.split)][path].append(entry)
    plans, number = [], 0
    for split, of_split in splits.items():
        parts: list[list[tuple[int, list[Entry]]]] = [[]]
        size = 0
        for path, of_file in of_split.items():
            if size >= shard_bytes:
                parts.append([])
                size = 0
            parts[-1].append((number, of_file))
            number += 1
            size += _size(path)
        plans += [Plan(split, output / f"{split}-{place:06d}.tar", part) for place, part in enumerate(parts)]
    return plans


def _size(path: Path) -> int:
    return path.stat().st_size if kind_of(path) is None else 0


def hash_of(plans: Sequence[Plan], modality: str, shard_bytes: int) -> str:
    """SHA-256 of what goes where: shards of one pack have the same."""
    digest = hashlib.sha256(f"{FORMAT} {modality} {shard_bytes}".encode())
    for planned in plans:
        for _, entries in planned.files:
            digest.update(f"\n{planned.path.name} {_size(entries[0].path)}".encode())
            for entry in entries:
                known = [entry.name, entry.labels, entry.text, entry.start, entry.end]
                digest.update(json.dumps(known).encode())
    return digest.hexdigest()
