"""Whether a file or folder is one that the toolkit wrote, and as what: nothing else is ever replaced."""

import json
import mmap
from pathlib import Path
from typing import Any

from encoders.storage.files import check_writable, plain, refuse_other_than_file

SOFTWARE = "ssql-toolkit"
RESULTS, LATENCIES, REPORT, CARD, ENCODER = (
    "results of an evaluation", "latencies", "a verification report", "a model card", "the description of an encoder",
)  # fmt: skip
TABLE, PLOT, PAGE, FEATURES, ONNX = "a table", "a plot", "a report's page", "features", "an ONNX file"
ONNX_DATA = "the weights of an ONNX file"
ROW_KEYS = {"method", "task", "bit_width", "metric", "value"}
# What a JSON file holds by its keys: those of the first row of a list, or of an object.
ROWS = {RESULTS: ROW_KEYS, LATENCIES: {"file", "size_bytes", "threads", "seconds", "latency_ms"}}
OBJECTS = {
    CARD: {"encoder", "input", "head", "files"},
    ENCODER: {"encoder", "arguments", "format_version"},
    REPORT: {"bit_width", "first_difference", "passed"},
}
# What a file of results, or of an export, is by the ending of its name.
BY_ENDING = {
    ".json": RESULTS,
    ".csv": RESULTS,
    ".md": TABLE,
    ".png": PLOT,
    ".html": PAGE,
    ".safetensors": FEATURES,
    ".onnx": ONNX,
}
HEAD = 4096  # bytes in which a picture or page says who wrote it
# How it says so.
MARKS = {PLOT: f"tEXtSoftware\0{SOFTWARE}", PAGE: f'<meta name="generator" content="{SOFTWARE}">'}
# The first bytes of a file of weights beside an ONNX file.
ONNX_DATA_MARK = f"weights of an ONNX file, written by {SOFTWARE}\n".encode()
# A key of ONNX's metadata as protobuf writes it: field 1 of an entry, of 20 bytes; then comes field 2, its value.
ONNX_MARK = b"\x0a\x14ssql_toolkit_version\x12"


def mark(kind: str) -> str:
    """The last line of a Markdown file that the toolkit writes, which no reader shows."""
    return f"<!-- {kind} by {SOFTWARE} -->\n"


def refuse_foreign(path: Path, kind: str, overwrite: bool = True) -> None:
    """Check, before the work, that a file may be written: nothing is there, or what the toolkit wrote of the same kind.

    An empty file is nobody's: there is nothing to lose, unless nothing at all may be replaced.

    Args:
        path: to be written.
        kind: what it will be, one of this module's kinds.
        overwrite: whether a file that the toolkit wrote may be replaced.

    Raises:
        FileExistsError: a file stands there that may not be replaced.
        OSError: nothing can be written there.
    """
    path = plain(path)
    check_writable(path)
    refuse_other_than_file(path)
    if not path.exists():
        return
    found = written_kind(path) if path.stat().st_size else kind
    if found != kind:
        what = f"holds {found}" if found else "was not written by ssql"
        raise FileExistsError(f"{path} {what} and would be replaced by {kind}: choose another output")
    if not overwrite:
        raise FileExistsError(f"{path} exists already: choose another output, or overwrite it (--overwrite true)")


def written_kind(path: Path) -> str | None:
    """What the toolkit wrote here, by the ending of the name; None for a file of anybody else."""
    if not path.is_file():  # opening a pipe would wait for ever
        return None
    try:
        return READERS.get(path.suffix, _json)(path)
    except (ValueError, OSError, RecursionError, AttributeError):
        return None


def _json(path: Path) -> str | None:
    value: Any = json.loads(path.read_bytes())
    kinds, sample = (ROWS, value[0] if value else None) if isinstance(value, list) else (OBJECTS, value)
    keys = sample.keys() if isinstance(sample, dict) else set()
    return next((kind for kind, expected in kinds.items() if expected <= keys), None)


def _csv(path: Path) -> str | None:
    with path.open("rb") as file:
        columns = file.readline(HEAD).decode().strip().split(",")
    return RESULTS if set(columns) >= ROW_KEYS else None


def _markdown(path: Path) -> str | None:
    text = path.read_bytes()
    return next((kind for kind in (TABLE, CARD) if text.endswith(mark(kind).encode())), None)


def _marked(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(HEAD)
    return next((kind for kind, text in MARKS.items() if text.encode() in head), None)


def _safetensors(path: Path) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= path.stat().st_size else {}
    about = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return FEATURES if {"encoder", "audio", "frame_rate_hz"} <= about.keys() else None


def _onnx(path: Path) -> str | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return ONNX if content.rfind(ONNX_MARK) >= 0 else None  # metadata stands behind the graph and its weights


def _onnx_data(path: Path) -> str | None:
    with path.open("rb") as file:
        return ONNX_DATA if file.read(len(ONNX_DATA_MARK)) == ONNX_DATA_MARK else None


# All others are JSON.
READERS = {
    ".csv": _csv,
    ".md": _markdown,
    ".png": _marked,
    ".html": _marked,
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".data": _onnx_data,
}
