"""Hugging Face's audiofolder: metadata.csv or metadata.jsonl with a column file_name, beside the files it names."""

from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, below, relative, split_of
from ssql.data.layouts.rows import columns_of, rows_of

NAME, COLUMN = "metadata", "file_name"
ENDINGS = (".csv", ".tsv", ".jsonl")
# Columns that hold what is said; the first that is there is taken.
TEXTS = ("text", "transcription", "transcript", "sentence")


def is_huggingface(root: Path) -> bool:
    """Whether a metadata file names files, in the folder or in folders right in it (train/, test/)."""
    return bool(_tables(root))


def read_huggingface(root: Path) -> list[Entry]:
    """Every row; the folder train/ or test/ that a file lies in, or a column split, names the split.

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
            split = row.pop("split", None) or (name.split("/")[0] if "/" in name else "")
            entries.append(Entry(path, name, row, split_of(split), texts[0] if texts else None, where=where))
    return entries


def _tables(root: Path) -> list[Path]:
    files = sorted([*root.iterdir(), *root.glob("*/*")])
    named = [file for file in files if file.stem.lower() == NAME and file.suffix.lower() in ENDINGS]
    return [file for file in named if COLUMN in columns_of(file)]
