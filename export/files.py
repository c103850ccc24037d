"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; renamed to `path` when the block ends well, deleted otherwise.

    A file that stood at `path` stays until then. A process that is killed leaves at most the hidden file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    staging = Path(name)
    try:
        yield staging
        os.fsync(handle)  # a full disk may only say so now
        staging.chmod(0o644)
        os.replace(staging, path)
    finally:
        os.close(handle)
        staging.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write text, whole or not at all."""
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Write JSON, whole or not at all."""
    write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", path)
