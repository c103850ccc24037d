"""What a folder of shards holds already: whether it is a pack's own, whole, and of the bytes that files have now."""

import logging
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from encoders.storage.folder import file_sha256
from encoders.storage.paths import kind_of, shown
from encoders.storage.strict_json import read_strict_json
from ssql.data.shards.examining import Examine
from ssql.data.shards.index import INDEX
from ssql.data.shards.plans import Plan
from ssql.data.shards.tar import Item, ShardError, ShardHeader, lines_of, read_header, read_items

log = logging.getLogger(__name__)

_OWN = re.compile(r"index\.json|\w+-\d{6}\.(tar|jsonl)|\.(index\.json|\w+-\d{6}\.(tar|jsonl))\.ssql-(tmp|lock)")


def own_files(output: Path) -> list[Path]:
    """Files of a folder whose names are those that a pack gives."""
    return [path for path in output.iterdir() if _OWN.fullmatch(path.name)]


def check_folder(output: Path, plan: str, shards: set[Path]) -> None:
    """Refuse a folder that holds anything but shards of this plan: their names alone do not say whose they are."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise FileExistsError(f"{shown(output)} is no folder, and shards need one: choose another --output")
    own = [path for path in own_files(output) if not path.name.startswith(".")]
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


def is_there(planned: Plan, examine: Examine) -> bool:
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


def _changed(planned: Plan, header: ShardHeader, items: Sequence[Item], examine: Examine) -> str:
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
