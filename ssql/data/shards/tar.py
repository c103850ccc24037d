"""One shard: a tar file, and the lines that say where in it every item is."""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from encoders.storage.files import utf8, write_together
from encoders.storage.folder import file_sha256
from encoders.storage.paths import shown

FORMAT = 1
AGAIN = "run the same `ssql pack` again, which makes anew the shards that are not whole"
_LARGEST = 2**48  # of samples and bytes: no file has more


class ShardError(ValueError):
    """A shard that is missing, damaged, or none."""


@dataclass(frozen=True, slots=True)
class Item:
    """A clip or an image, and where it is.

    Attributes:
        name: of the file as it was packed: its path below the folder, or an id of its layout.
        labels: task to class name, or a column like `pitch (Hz)` to a number, as text.
        text: what is said, where that is known.
        start: first sample of the clip in its file, at 16,000 Hz; 0 for images.
        end: behind its last one.
        offset: of the file in the tar file, in bytes.
        size: of the file in bytes.
        crc32: of these bytes.
    """

    name: str
    labels: dict[str, str]
    text: str | None
    start: int
    end: int
    offset: int = 0
    size: int = 0
    crc32: int = 0


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The first line beside a shard.

    Attributes:
        plan: hash of all that was to be packed, the same in all shards of a folder.
        items: clips or images.
        seconds: of the clips; 0 for images.
        skipped: reason to names of what is left out.
        bytes: of the tar file.
        sha256: of the tar file.
        format: of these lines.
        crc32: of the lines that follow.
    """

    plan: str
    items: int
    seconds: float
    skipped: dict[str, list[str]]
    bytes: int
    sha256: str
    format: int = FORMAT
    crc32: int | None = None


def lines_of(shard: Path) -> Path:
    """Where the lines of a shard are."""
    return shard.with_suffix(".jsonl")


def write_tar(path: Path, files: Iterable[tuple[str, Path, list[Item]]]) -> list[Item]:
    """Write files, as they are, into a tar file.

    Beside KEY.ogg stands KEY.json with the names, labels and texts of its items, as readers of WebDataset expect it.
    Equal files make equal bytes: no dates, no owners.

    Args:
        path: of the tar file.
        files: key, file, and its items without their place.

    Returns:
        the items with their places.

    Raises:
        OSError: a file cannot be read, or the tar file not be written.
    """
    placed = []
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, source, items in files:
            with source.open("rb") as file:
                counted = _Counted(file)
                member = tarfile.TarInfo(key + source.suffix.lower())
                member.size = source.stat().st_size
                tar.addfile(member, counted)  # type: ignore[arg-type]
                offset = tar.offset - -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            known = [{key: value for key, value in asdict(item).items() if key in _KNOWN} for item in items]
            about = utf8(json.dumps({"items": known}, ensure_ascii=False))
            member = tarfile.TarInfo(f"{key}.json")
            member.size = len(about)
            tar.addfile(member, io.BytesIO(about))
            placed += [
                Item(item.name, item.labels, item.text, item.start, item.end, offset, counted.size, counted.crc32)
                for item in items
            ]
    return placed


_KNOWN = ("name", "labels", "text", "start", "end")


class _Counted:
    """A file that is read once, with the checksum of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.crc32 = file, 0, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content = self.file.read(size)
        self.size, self.crc32 = self.size + len(content), zlib.crc32(content, self.crc32)
        return content


def write_lines(
    shard: Path, written: Path, plan: str, items: list[Item], seconds: float, skipped: Mapping[str, list[str]]
) -> None:
    """Write the lines beside a shard.

    They come before the shard takes its name: a tar file without lines was never written here.

    Args:
        shard: the tar file.
        written: where it is as yet.
        plan: see `ShardHeader`, as are the others.
        items: what is in it.
        seconds: of the clips.
        skipped: what is left out.
    """
    lines = b"".join(_line(item) for item in items)
    header = ShardHeader(
        plan,
        len(items),
        seconds,
        dict(skipped),
        written.stat().st_size,
        file_sha256(written),
        FORMAT,
        zlib.crc32(lines),
    )
    write_together({lines_of(shard): _line(header) + lines})


def _line(value: Item | ShardHeader) -> bytes:
    return utf8(json.dumps(asdict(value), ensure_ascii=False) + "\n")


def read_header(shard: Path) -> ShardHeader | None:
    """The first line beside a shard; None where there is none.

    Raises:
        ShardError: it is damaged.
    """
    try:
        with lines_of(shard).open(encoding="utf-8") as file:
            return ShardHeader(**_object(file.readline(), shard))
    except FileNotFoundError:
        return None
    except (TypeError, UnicodeDecodeError, OSError):
        raise _damaged_lines(shard) from None


def read_items(shard: Path) -> Iterator[Item]:
    """What is in a shard, from the lines beside it.

    Raises:
        ShardError: they are missing, damaged, or not as many as their first line says.
    """
    count = 0
    try:
        with lines_of(shard).open("rb") as file:
            header = _object(file.readline().decode(), shard)
            place, crc32 = file.tell(), 0
            for line in file:
                crc32 = zlib.crc32(line, crc32)
            if header.get("crc32", crc32) != crc32:
                raise _damaged_lines(shard)
            file.seek(place)
            for line in file:
                yield _checked(Item(**_object(line.decode(), shard)), shard)
                count += 1
    except FileNotFoundError:
        raise ShardError(f"{shown(lines_of(shard))} does not exist: {AGAIN}") from None
    except OSError as error:
        raise ShardError(f"{shown(lines_of(shard))} cannot be read: {error.strerror}") from error
    except (TypeError, UnicodeDecodeError):
        raise _damaged_lines(shard) from None
    if count != header.get("items"):
        raise _damaged_lines(shard)


def _checked(item: Item, shard: Path) -> Item:
    """An item as it must be: lines may have been written elsewhere."""
    numbers = (item.start, item.end, item.offset, item.size, item.crc32)
    texts = (item.name, *item.labels, *item.labels.values()) if isinstance(item.labels, dict) else (None,)
    if (
        not all(isinstance(text, str) for text in texts)
        or not isinstance(item.text, str | None)
        or not all(type(number) is int and 0 <= number < _LARGEST for number in numbers)
        or item.end < item.start
    ):
        raise _damaged_lines(shard)
    return item


def _object(line: str, shard: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise _damaged_lines(shard) from None
    if not isinstance(value, dict):
        raise _damaged_lines(shard)
    return value


def _damaged_lines(shard: Path) -> ShardError:
    return ShardError(f"{shown(lines_of(shard))} is damaged: {AGAIN}")
