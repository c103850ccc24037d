"""Files into shards: what goes where is known before any is read, so that a pack that was stopped goes on."""

import hashlib
import json
import logging
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from encoders.storage.files import json_bytes, remove, remove_leftovers, sole_writer, staged_file, write_json
from encoders.storage.folder import file_sha256
from encoders.storage.paths import kind_of, shown
from encoders.storage.strict_json import read_strict_json
from ssql.data.layouts.entry import Entry, classes_and_targets, counted, some
from ssql.data.shards.index import INDEX
from ssql.data.shards.tar import (
    FORMAT,
    Item,
    ShardError,
    ShardHeader,
    lines_of,
    read_header,
    read_items,
    write_lines,
    write_tar,
)
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

_OWN = re.compile(r"index\.json|\w+-\d{6}\.(tar|jsonl)|\.(index\.json|\w+-\d{6}\.(tar|jsonl))\.ssql-(tmp|lock)")


class Examined(NamedTuple):
    """What became of an entry when its file was decoded.

    Attributes:
        entry: of the list that was given.
        start: its first sample at 16,000 Hz; 0 for images.
        end: behind its last one.
        reason: why it cannot be used, in a word or two; empty where it can.
    """

    entry: Entry
    start: int = 0
    end: int = 0
    reason: str = ""


# Decodes the files of entries, in their order.
Examine = Callable[[Sequence[Entry]], Iterator[Examined]]


class Packed(NamedTuple):
    """What a pack has come to.

    Attributes:
        shards: how many there are.
        written: how many of them were written now; the others were there, and whole.
        items: clips or images by split.
        seconds: of all clips; 0 for images.
        bytes: of all shards.
        skipped: reason to the number of items left out.
    """

    shards: int
    written: int
    items: dict[str, int]
    seconds: float
    bytes: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class _Plan:
    """One shard: files with their numbers and entries."""

    split: str
    path: Path
    files: list[tuple[int, list[Entry]]]

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entries in self.files for entry in entries]


def pack_entries(
    entries: Sequence[Entry], output: Path, examine: Examine, modality: str, shard_bytes: int, rate: int
) -> Packed:
    """Pack entries into shards of a folder; shards that are there already, whole and of the same bytes, stay.

    What is left out is logged.

    Args:
        entries: each with a split.
        output: folder of the shards.
        examine: decodes.
        modality: `audio` or `image`.
        shard_bytes: of files in a shard; the last file may lead beyond.
        rate: samples of an item in a second; 0 for images.

    Raises:
        FileExistsError: the folder holds something else, or shards of other files.
        BlockingIOError: another process packs into it.
        ValueError: no entry can be used.
        OSError: a file cannot be read, or a shard not be written.
    """
    made = not os.path.lexists(output)
    with sole_writer(output):
        plans = _planned(entries, output, shard_bytes)
        plan = _hash_of(plans, modality, shard_bytes)
        _check_folder(output, plan, {planned.path for planned in plans})
        output.mkdir(exist_ok=True)
        try:
            remove_leftovers(output)
            return _packed(plans, output, plan, examine, modality, rate)
        finally:
            if made:
                with suppress(OSError):  # not empty
                    output.rmdir()


def _packed(plans: Sequence[_Plan], output: Path, plan: str, examine: Examine, modality: str, rate: int) -> Packed:
    missing = [planned for planned in plans if not _is_there(planned, examine)]
    if len(missing) < len(plans):
        log.info("%d of %d shards are there already, and whole", len(plans) - len(missing), len(plans))
    examined = track(
        (found for planned in missing for found in _grouped(planned, examine)),
        "packing", sum(len(planned.entries) for planned in missing), lambda group: len(group[1]),
    )  # fmt: skip
    for planned in missing:
        _write(planned, plan, islice(examined, len(planned.files)), rate)
    headers = [_header(planned.path) for planned in plans]
    skipped: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        for reason, names in header.skipped.items():
            skipped[reason] += names
    for reason, names in skipped.items():
        log.warning("left out %s (%s): %s", counted(names), reason, some(names, 10))
    if not any(header.items for header in headers):
        for name in _own(output):
            remove(name)
        count, reasons = sum(map(len, skipped.values())), ", ".join(sorted(skipped))
        raise ValueError(f"none of the {count} files can be packed ({reasons})")
    packed = _summed(plans, headers, len(missing))
    index = _index(plans, headers, packed, modality)
    if kind_of(output / INDEX) is not None or (output / INDEX).read_bytes() != json_bytes(index):
        write_json(index, output / INDEX)
    return packed


def _planned(entries: Sequence[Entry], output: Path, shard_bytes: int) -> list[_Plan]:
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
        plans += [_Plan(split, output / f"{split}-{place:06d}.tar", part) for place, part in enumerate(parts)]
    return plans


def _size(path: Path) -> int:
    return path.stat().st_size if kind_of(path) is None else 0


def _hash_of(plans: Sequence[_Plan], modality: str, shard_bytes: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {modality} {shard_bytes}".encode())
    for planned in plans:
        for _, entries in planned.files:
            digest.update(f"\n{planned.path.name} {_size(entries[0].path)}".encode())
            for entry in entries:
                known = [entry.name, entry.labels, entry.text, entry.start, entry.end]
                digest.update(json.dumps(known).encode())
    return digest.hexdigest()


def _own(output: Path) -> list[Path]:
    return [path for path in output.iterdir() if _OWN.fullmatch(path.name)]


def _check_folder(output: Path, plan: str, shards: set[Path]) -> None:
    """Refuse a folder that holds anything but shards of this plan: their names alone do not say whose they are."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise FileExistsError(f"{shown(output)} is no folder, and shards need one: choose another --output")
    own = [path for path in _own(output) if not path.name.startswith(".")]
    strange = sorted(path for path in output.iterdir() if not _OWN.fullmatch(path.name))
    headers = {path: _header_if_whole(path) for path in own if path.suffix == ".jsonl"}
    for path, header in headers.items():
        if header is not None and (path.with_suffix(".tar") not in shards or header.plan != plan):
            raise FileExistsError(
                f"{shown(output)} holds shards of other files, labels or options: choose another --output, or delete it"
            )
    if not any(headers.values()) and not _lists_shards(output / INDEX, shards):
        strange += sorted(own)
    strange += sorted(path for path in own if path.name != INDEX and path.with_suffix(".tar") not in shards)
    if strange:
        raise FileExistsError(f"{shown(strange[0])} was not written by ssql pack: choose another --output")


def _lists_shards(index: Path, shards: set[Path]) -> bool:
    """Whether an index names these shards: where all of their lines are damaged, it still says whose they are."""
    try:
        listed = {index.with_name(shard["name"]) for shard in read_strict_json(index)["shards"]}
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return bool(listed) and listed == shards


def _header_if_whole(shard: Path) -> ShardHeader | None:
    try:
        return read_header(shard)
    except ShardError:
        return None


def _is_there(planned: _Plan, examine: Examine) -> bool:
    """Whether a shard is there, whole, and of the bytes that its files have now."""
    shard = planned.path
    if not os.path.lexists(lines_of(shard)) and not os.path.lexists(shard):
        return False
    header, items = _header_if_whole(shard), _items_if_whole(shard)
    if (
        header is None
        or items is None
        or kind_of(shard) is not None
        or shard.stat().st_size != header.bytes
        or file_sha256(shard) != header.sha256
    ):
        log.warning("%s is missing or damaged, and is packed anew", shown(shard))
        return False
    changed = _changed(planned, header, items, examine)
    if changed:
        log.warning("%s is packed anew, because %s has changed since", shown(shard), changed)
    return not changed


def _changed(planned: _Plan, header: ShardHeader, items: Sequence[Item], examine: Examine) -> str:
    """The first file that has other bytes than when it was packed, or can be used now and could not; empty if none."""
    skipped = {name for names in header.skipped.values() for name in names}
    crc32s = {(item.name, item.crc32) for item in items}
    of_items = {item.name for item in items}
    for _, entries in planned.files:
        packed = next((entry.name for entry in entries if entry.name in of_items), None)
        if packed is not None and (packed, _crc32(entries[0].path)) not in crc32s:
            return packed
    left_out = [entry for entry in planned.entries if entry.name in skipped and entry.name not in of_items]
    return next((found.entry.name for found in examine(left_out) if not found.reason), "")


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def _items_if_whole(shard: Path) -> list[Item] | None:
    try:
        return list(read_items(shard))
    except ShardError:
        return None


def _grouped(planned: _Plan, examine: Examine) -> Iterator[tuple[int, list[Examined]]]:
    """What became of each file of a shard."""
    found = examine(planned.entries)
    for number, entries in planned.files:
        yield number, list(islice(found, len(entries)))


def _write(planned: _Plan, plan: str, groups: Iterator[tuple[int, list[Examined]]], rate: int) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)

    def used() -> Iterator[tuple[str, Path, list[Item]]]:
        for number, found in groups:
            items = []
            for one in found:
                if one.reason:
                    skipped[one.reason].append(one.entry.name)
                else:
                    items.append(Item(one.entry.name, one.entry.labels, one.entry.text, one.start, one.end))
            if items:
                yield f"{number:09d}", found[0].entry.path, items

    with staged_file(planned.path) as staging:
        items = write_tar(staging, used())
        seconds = sum(item.end - item.start for item in items) / rate if rate else 0.0
        write_lines(planned.path, staging, plan, items, seconds, skipped)


def _header(shard: Path) -> ShardHeader:
    header = read_header(shard)
    assert header is not None
    return header


def _summed(plans: Sequence[_Plan], headers: Sequence[ShardHeader], written: int) -> Packed:
    items: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for planned, header in zip(plans, headers, strict=True):
        items[planned.split] += header.items
        skipped.update({reason: len(names) for reason, names in header.skipped.items()})
    seconds, size = sum(header.seconds for header in headers), sum(header.bytes for header in headers)
    return Packed(len(plans), written, dict(items), seconds, size, dict(skipped))


def _index(plans: Sequence[_Plan], headers: Sequence[ShardHeader], packed: Packed, modality: str) -> dict[str, object]:
    # From what was packed: names of different folders may be the same.
    classes, targets = classes_and_targets([item.labels for planned in plans for item in read_items(planned.path)])
    return {
        "format": FORMAT,
        "modality": modality,
        "items": packed.items,
        "seconds": round(packed.seconds, 3),
        "classes": classes,
        "targets": targets,
        "skipped": packed.skipped,
        "shards": [
            {"name": planned.path.name, "split": planned.split, "items": header.items}
            | {"seconds": round(header.seconds, 3), "bytes": header.bytes, "sha256": header.sha256}
            for planned, header in zip(plans, headers, strict=True)
        ],
    }
