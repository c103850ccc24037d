"""Files of results, each written to a temporary name and renamed: JSON, CSV, text, pictures."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise FileExistsError where results would be replaced."""
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: use --overwrite true, or another --output")


def save_json(value: Any, path: Path) -> None:
    """Write JSON."""
    save_text(json.dumps(value, indent=1) + "\n", path)


def save_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, a column for each key that any row has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(text.getvalue(), path)


def save_text(text: str, path: Path) -> None:
    """Write text."""
    save_bytes(text.encode(), path)


def save_bytes(content: bytes, path: Path) -> None:
    """Write bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_bytes(content)
    os.replace(staging, path)


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    save_bytes(picture.getvalue(), path)
