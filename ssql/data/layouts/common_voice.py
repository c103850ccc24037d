"""Mozilla Common Voice, one language: train.tsv, test.tsv, validated.tsv, ... and the recordings in clips/."""

from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, below, relative, split_of
from ssql.data.layouts.rows import columns_of, table_rows

# Its columns that say something of who speaks, and what they are called here.
LABELS = {"client_id": "speaker", "age": "age", "gender": "gender", "accents": "accent", "accent": "accent"}
CLIPS = "clips"


def is_common_voice(root: Path) -> bool:
    """Whether there are clips and a table that names them."""
    return (root / CLIPS).is_dir() and bool(_tables(root))


def read_common_voice(root: Path) -> list[Entry]:
    """The rows of train.tsv, dev.tsv and test.tsv; of validated.tsv where none of them is there.

    Raises:
        ValueError: none of these tables, or a wrong row; the sentence names file and row.
    """
    tables = {path.stem.lower(): path for path in _tables(root)}
    chosen = [tables[name] for name in ("train", "dev", "test") if name in tables] or [
        tables[name] for name in ("validated",) if name in tables
    ]
    if not chosen:
        raise ValueError(
            f"{shown(root)} has no train.tsv, dev.tsv, test.tsv or validated.tsv with columns path and sentence, as "
            "Common Voice has"
        )
    entries = []
    for table in chosen:
        for where, row in table_rows(table):
            name = row["path"]
            if name and not Path(name).suffix:  # as in its first releases
                name += ".mp3"
            path = below(root / CLIPS, name, where)
            labels = {LABELS[column]: value for column, value in row.items() if column in LABELS}
            entries.append(
                Entry(path, relative(path, root), labels, split_of(table.stem), row["sentence"], where=where)
            )
    return entries


def _tables(root: Path) -> list[Path]:
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() == ".tsv")
    return [path for path in tables if {"path", "sentence"} <= set(columns_of(path))]
