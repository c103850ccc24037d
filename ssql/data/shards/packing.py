"""Files into shards: written where they are not there yet."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from encoders.storage.files import json_bytes, remove, remove_leftovers, sole_writer, staged_file, write_json
from encoders.storage.paths import kind_of
from ssql.data.layouts.entry import Entry, classes_and_targets, counted, some
from ssql.data.shards.examining import Examine, Examined
from ssql.data.shards.index import INDEX
from ssql.data.shards.plans import Plan, hash_of, plans_of
from ssql.data.shards.present import check_folder, is_there, own_files
from ssql.data.shards.tar import FORMAT, Item, ShardHeader, read_header, read_items, write_lines, write_tar
from ssql.terminal.progress import track

log = logging.getLogger(__name__)


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
        plans = plans_of(entries, output, shard_bytes)
        plan = hash_of(plans, modality, shard_bytes)
        check_folder(output, plan, {planned.path for planned in plans})
        output.mkdir(exist_ok=True)
        try:
            remove_leftovers(output)
            return _packed(plans, output, plan, examine, modality, rate)
        finally:
            if made:
                with suppress(OSError):  # not empty
                    output.rmdir()


def _packed(plans: Sequence[Plan], output: Path, plan: str, examine: Examine, modality: str, rate: int) -> Packed:
    missing = [planned for planned in plans if not is_there(planned, examine)]
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
        for name in own_files(output):
            remove(name)
        count, reasons = sum(map(len, skipped.values())), ", ".join(sorted(skipped))
        raise ValueError(f"none of the {count} files can be packed ({reasons})")
    packed = _summed(plans, headers, len(missing))
    index = _index(plans, headers, packed, modality)
    if kind_of(output / INDEX) is not None or (output / INDEX).read_bytes() != json_bytes(index):
        write_json(index, output / INDEX)
    return packed


def _grouped(planned: Plan, examine: Examine) -> Iterator[tuple[int, list[Examined]]]:
    """What became of each file of a shard."""
    found = examine(planned.entries)
    for number, entries in planned.files:
        yield number, list(islice(found, len(entries)))


def _write(planned: Plan, plan: str, groups: Iterator[tuple[int, list[Examined]]], rate: int) -> None:
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


def _summed(plans: Sequence[Plan], headers: Sequence[ShardHeader], written: int) -> Packed:
    items: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for planned, header in zip(plans, headers, strict=True):
        items[planned.split] += header.items
        skipped.update({reason: len(names) for reason, names in header.skipped.items()})
    seconds, size = sum(header.seconds for header in headers), sum(header.bytes for header in headers)
    return Packed(len(plans), written, dict(items), seconds, size, dict(skipped))


def _index(plans: Sequence[Plan], headers: Sequence[ShardHeader], packed: Packed, modality: str) -> dict[str, object]:
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
