"""The file of weights beside an ONNX file that would be over protobuf's 2 GB: ONNX calls it external data; no torch."""

import mmap
from pathlib import Path
from typing import NamedTuple

from export.wire import EXTERNAL_DATA, GRAPH, INITIALIZER, fields

ENDING = ".data"
SHA256 = "data_sha256"  # of the file of weights, in the metadata of the ONNX file
LOCATION, OFFSET, LENGTH = b"location", b"offset", b"length"


class DataFile(NamedTuple):
    """A file of weights, and how many bytes it has at least."""

    path: Path
    size: int


def beside(path: str | Path) -> Path:
    """The name of the file of weights that belongs to an ONNX file, if it needs one: `encoder.onnx.data`."""
    path = Path(path)
    return path.with_name(path.name + ENDING)


def data_file(path: str | Path) -> DataFile | None:
    """The file of weights that an ONNX file names; None where it holds all of them itself, or is no ONNX file."""
    name, size = "", 0
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for graph in (one for one in fields(content, 0, len(content)) if one.number == GRAPH):  # type: ignore[arg-type]
                for tensor in (one for one in fields(content, *graph[2:]) if one.number == INITIALIZER):  # type: ignore[arg-type]
                    entries = {}
                    for one in fields(content, *tensor[2:]):  # type: ignore[arg-type]
                        if one.number == EXTERNAL_DATA:
                            key, value = (content[part.content : part.end] for part in fields(content, *one[2:]))  # type: ignore[arg-type]
                            entries[key] = value
                    if LOCATION in entries:
                        name = name or entries[LOCATION].decode()
                        size = max(size, int(entries.get(OFFSET, 0)) + int(entries.get(LENGTH, 0)))
    except (ValueError, OSError):
        return None
    return DataFile(Path(path).parent / name, size) if name else None


def weights_of(path: str | Path) -> Path:
    """The file that really holds a file's large weights, itself or the one beside it, with no link on the way."""
    data = data_file(path)
    inside = data is not None and data.path.parent == Path(path).parent
    return (data.path if data is not None and inside else Path(path)).resolve()


def size_of(path: str | Path) -> int:
    """Bytes of an ONNX file, with those of the file of weights beside it."""
    parts = [Path(path)]
    data = data_file(path)
    if data is not None and data.path.is_file():
        parts.append(data.path)
    return sum(part.stat().st_size for part in parts)


def missing_data(path: str | Path) -> str | None:
    """What is wrong with the file of weights beside an ONNX file, in a sentence; None where nothing is."""
    data = data_file(path)
    if data is None:
        return None
    if data.path.parent != Path(path).parent:
        return f"{path} names a file of weights in another folder, {data.path}: only what lies beside it is read"
    if not data.path.is_file():
        return (
            f"{path} has its weights in a second file, {data.path.name}, which is not beside it: both belong in one "
            "folder, with the names that ssql export gave them"
        )
    found = data.path.stat().st_size
    if found < data.size:
        return f"{data.path} is damaged: it has {found:,} bytes, and {Path(path).name} needs {data.size:,}"
    return None
