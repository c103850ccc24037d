"""Checkpoints as files: staged beside the target, whole or not there, found again after a kill or a full disk."""

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from encoders.storage.files import remove, staged_file, to_disk

log = logging.getLogger(__name__)

# `new` is a finished one that has not become `last` yet.
NEW, LAST, PREVIOUS = "new.ckpt", "last.ckpt", "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; loads without pickles."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file.

        Raises:
            OSError: it could not be written; earlier checkpoints stay, and no part of this one.
        """
        try:
            with staged_file(path) as staging, staging.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise unwritten(Path(path), error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file; `weights_only` cannot be switched off."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


def staging_of(path: Path) -> Path:
    """Where the parts of a checkpoint are written before the folder gets its name."""
    return path.with_name(f".{path.name}.tmp")


def take_place(staging: Path, path: Path) -> None:
    """Rename a finished file or folder to its name, which may be taken by an older one."""
    if path.is_dir() or (staging.is_dir() and path.exists()):
        remove(path)  # a folder cannot be renamed over
    os.replace(staging, path)
    if os.name == "posix":
        to_disk(path.parent)


def rotate(folder: Path) -> None:
    """The new checkpoint becomes the last one, and the last one the previous: one of them is there at every moment."""
    if (folder / LAST).exists():
        take_place(folder / LAST, folder / PREVIOUS)
    take_place(folder / NEW, folder / LAST)


def unwritten(path: Path, error: BaseException) -> OSError:
    """What to say of a checkpoint that could not be written."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "strerror", None):
        cause = cause.__cause__ or cause.__context__
    reason = getattr(cause, "strerror", error)
    return OSError(f"checkpoint {path} could not be written ({reason}); earlier checkpoints are whole")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read to its end: a file with right checksums, or a folder with all of its parts."""
    if path.is_dir():
        parts = [path / ".metadata", path / "meta.pt", *path.glob("*.distcp")]
        return len(parts) > 2 and all(part.is_file() and part.stat().st_size for part in parts)
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError):
        return False


def newest_whole(folder: Path) -> Path:
    """The checkpoint to go on from: the last one, or where that is missing or damaged the newest of the others.

    Args:
        folder: of checkpoints.

    Raises:
        FileNotFoundError: no checkpoint at all.
        ValueError: none that is whole.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.lstat().st_mtime, reverse=True)
    if not found:
        raise FileNotFoundError(f"nothing to resume: {folder} holds no checkpoint")
    order = [NEW, LAST, PREVIOUS]
    found.sort(key=lambda path: order.index(path.name) if path.name in order else len(order))
    for path in found:
        if is_whole(path):
            if path.name not in (NEW, LAST):
                state = "damaged" if (folder / LAST).exists() else "missing"
                log.warning("%s is %s: going on from %s, which is older", folder / LAST, state, path.name)
            return path
    raise ValueError(f"nothing to resume: no checkpoint in {folder} is whole ({', '.join(one.name for one in found)})")
