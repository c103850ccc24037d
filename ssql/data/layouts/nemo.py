"""NeMo's manifests: files of JSON lines with audio_filepath, duration, and what else is known."""

from pathlib import Path
from typing import Any

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, below, relative, split_of
from ssql.data.layouts.rows import JSON_NAMES, columns_of, json_rows, seconds_of

COLUMN = "audio_filepath"
# What else a row may say of a recording, and what it is called here.
LABELS = {"speaker": "speaker", "label": "label", "command": "label", "lang": "language", "gender": "gender"}


def is_nemo(root: Path) -> bool:
    """Whether the folder has files of JSON lines that name audio files."""
    return bool(_manifests(root))


def read_nemo(root: Path) -> list[Entry]:
    """Every row; a manifest that is named after a split, like train_manifest.json, gives it.

    A row with offset is the part of its file that starts there and lasts duration.

    Raises:
        ValueError: no manifest, or a wrong row; the sentence names file and row.
    """
    manifests = _manifests(root)
    if not manifests:
        raise ValueError(f"{shown(root)} has no file of JSON lines with {COLUMN}, as NeMo's manifests are")
    return [
        _entry(row, where, root, split_of(manifest.stem))
        for manifest in manifests
        for where, row in json_rows(manifest)
    ]


def _entry(row: dict[str, Any], where: str, root: Path, split: str | None) -> Entry:
    if not isinstance(row.get(COLUMN), str):
        raise ValueError(f"{where} has no {COLUMN}")
    path = below(root, row[COLUMN], where)
    start, end = 0.0, None
    if row.get("offset") is not None:
        start = seconds_of(row["offset"], "offset", where)
        end = start + seconds_of(row.get("duration"), "duration", where)
    labels = {LABELS[key]: str(value) for key, value in row.items() if key in LABELS and value is not None}
    text = row.get("text")
    if not isinstance(text, str | None):
        raise ValueError(f"{where}: text is {text!r}, not a text")
    name = relative(path, root) + (f" at {start:g} s" if end is not None else "")
    return Entry(path, name, labels, split, text, start, end, where=where)


def _manifests(root: Path) -> list[Path]:
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in JSON_NAMES)
    return [file for file in files if COLUMN in columns_of(file)]
