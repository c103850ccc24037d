"""Hugging Face's audiofolder: metadata.csv or .jsonl with a column file_name, beside the files it names."""

from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.folder_files import Skipped, files_below
from ssql.data.layouts.entry import Entry, below, relative, split_of
from ssql.data.layouts.rows import columns_of, rows_of

NAME, COLUMN = "metadata", "file_name"
ENDINGS = (".csv", ".tsv", ".jsonl")
# Columns that hold what is said; the first that is there is taken.
TEXTS = ("text", "transcription", "transcript", "sentence")


def is_huggingface(root: Path) -> bool:
    """Whether a metadata file names files, in the folder or below it (train/, data/test/)."""
    return bool(_tables(root))


def read_huggingface(root: Path) -> list[Entry]:
    """Every row; a column split, or a folder like train/ or data/test/ that a file lies in, names the split.

    Every column that holds neither text nor split is a label, or like `pitch (Hz)` a number.

    Raises:
        ValueError: no metadata file, or a wrong row; the sentence names file and row.
    """
    tables = _tables(root)
    if not tables:
        raise ValueError(f"{shown(root)} has no metadata.csv or metadata.jsonl with the column {COLUMN}")
    entries = []
    for table in tables:
        for where, row in rows_of(table):
            if COLUMN not in row:
                raise ValueError(f"{where} has no {COLUMN}")
            path = below(table.parent, row.pop(COLUMN), where)
            texts = [row.pop(column) for column in TEXTS if column in row]
            name = relative(path, root)
            named = row.pop("split", None)
            splits = [split_of(named)] if named else map(split_of, name.split("/")[:-1])
            split = next(filter(None, splits), None)
            entries.append(Entry(path, name, row, split, texts[0] if texts else None, where=where))
    return entries


def _tables(root: Path) -> list[Path]:
    files = files_below(root, Skipped())
    named = sorted(file for file in files if file.stem.lower() == NAME and file.suffix.lower() in ENDINGS)
    return [file for file in named if COLUMN in columns_of(file)]
