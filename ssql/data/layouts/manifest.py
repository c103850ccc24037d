"""The toolkit's own manifest: a CSV or TSV file with a column path, and a column for each label."""

from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, below, relative
from ssql.data.layouts.rows import table_rows

ENDINGS = (".csv", ".tsv")


def read_manifest(manifest: Path, root: Path) -> list[Entry]:
    """Its rows: columns path and, if wanted, split (train or test), sample_rate (Hz) and text; every other is a label.

    Args:
        manifest: the file.
        root: folder that its paths are below.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column path, no row, or a wrong row; the sentence names file and row.
    """
    entries = []
    try:
        for where, row in table_rows(manifest):
            if "path" not in row:
                break
            path = below(root, row.pop("path"), where)
            split, rate, text = row.pop("split", None), row.pop("sample_rate", None), row.pop("text", None)
            if split not in (None, "train", "test"):
                raise ValueError(f"{where}: split is {split!r}, not train or test")
            if rate and not (rate.isascii() and rate.isdigit()):
                raise ValueError(f"{where}: sample_rate is {rate!r}, not a whole number of Hz")
            entries.append(
                Entry(
                    path, relative(path, root), row, split, text, sample_rate=int(rate) if rate else None, where=where
                )
            )
    except FileNotFoundError:
        raise FileNotFoundError(f"manifest {shown(manifest)} does not exist") from None
    if not entries:
        raise ValueError(f"manifest {shown(manifest)} needs a header with the column path, and at least one row")
    return entries
