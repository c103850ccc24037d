"""Files of results, each whole or not at all and marked as ours: JSON, CSV, text, pictures."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.storage import files
from encoders.storage.ownership import BY_ENDING, RESULTS, SOFTWARE, TABLE, mark, refuse_foreign
from ssql.reports.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def refuse_existing(paths: Iterable[Path], overwrite: bool, rows: str = RESULTS) -> None:
    """Check, before the work, that files may be written: nothing is there, or what the toolkit wrote of the same kind.

    Args:
        paths: of JSON, CSV, Markdown, PNG, HTML, features (.safetensors) or ONNX.
        overwrite: whether a file that the toolkit wrote may be replaced.
        rows: what JSON files will hold, of the kinds in `encoders.storage.ownership`.

    Raises:
        FileExistsError: a file exists and may not be replaced.
        ValueError: a path with another ending.
        OSError: nothing can be written there.
    """
    for path in paths:
        if path.suffix not in BY_ENDING:
            raise ValueError(f"{path} should end in one of {', '.join(BY_ENDING)}")
        refuse_foreign(path, rows if path.suffix == ".json" else BY_ENDING[path.suffix], overwrite)


@contextmanager
def reserved(name: Path, paths: Iterable[Path], overwrite: bool, rows: str = RESULTS) -> Iterator[None]:
    """Be the only writer of files that belong together while they are made; remove what a killed one left beside them.

    Args:
        name: what they are called together, in the folder of the files.
        paths: as for `refuse_existing`, which is asked again: files may have appeared since.
        overwrite: likewise.
        rows: likewise.

    Raises:
        BlockingIOError: another process makes the same files.
        OSError: as `refuse_existing`.
    """
    with files.sole_writer(name):
        files.remove_leftovers(name.parent)
        refuse_existing(paths, overwrite, rows)
        yield


def save(contents: Mapping[Path, Any]) -> None:
    """Write files, all of them or, on a full disk, none.

    Args:
        contents: of files by their ending: any value for JSON (NaN and infinity become null), rows for CSV (a column
            for each key that any row has), text for Markdown and HTML, a figure for PNG. Markdown gets a last line,
            which no reader shows, that says who wrote it.
    """
    files.write_together({path: CONTENTS[path.suffix](content) for path, content in contents.items()})


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return files.utf8(text.getvalue())


def _png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png", metadata={"Software": SOFTWARE})
    return picture.getvalue()


CONTENTS: dict[str, Callable[[Any], bytes]] = {
    ".json": files.json_bytes,
    ".csv": _csv,
    ".md": lambda text: files.utf8(text.rstrip() + "\n\n" + mark(TABLE)),
    ".html": files.utf8,
    ".png": _png,
}
