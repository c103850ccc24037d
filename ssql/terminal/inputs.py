"""Whether what a command reads is there: looked at before what it would write, for a user mends that first."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from encoders import check_encoder_folder
from encoders.storage.paths import kind_of, shown


def check_inputs(encoders: Iterable[str | Path] = (), files: Iterable[str | Path] = (), data: Any = None) -> None:
    """Look at the names alone: nothing large is read.

    Args:
        encoders: folders of encoders, or exported files (.onnx).
        files: that are read.
        data: a data module, whose folder, where it has one, is to be there.

    Raises:
        encoders.ArtifactError: a folder that holds no encoder.
        FileNotFoundError: a file, or the folder of the data, is not there.
    """
    for encoder in encoders:
        if str(encoder).endswith(".onnx"):
            _check_there(encoder)
        else:
            check_encoder_folder(encoder)
    for file in files:
        _check_there(file)
    check_root(getattr(data, "root", None))


def _check_there(file: str | Path) -> None:
    """What else a path may be than a file, whoever reads it says in words of its own."""
    if kind_of(Path(file)) == "missing":
        raise FileNotFoundError(f"{shown(file)} does not exist")


def check_root(root: Any) -> None:
    """Raise FileNotFoundError where the folder of the data is not there; None is no folder and passes."""
    if isinstance(root, str | Path) and not Path(root).is_dir():
        raise FileNotFoundError(f"--data.root {shown(root)}: there is no such folder")
