"""Whether what a command reads is there: looked at before what it would write, for a user mends that first."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from encoders import check_encoder_folder
from encoders.storage.paths import check_regular, shown


def check_inputs(encoders: Iterable[str | Path] = (), files: Iterable[str | Path] = (), data: Any = None) -> None:
    """Look at the names alone: nothing large is read.

    Args:
        encoders: folders of encoders, or exported files (.onnx).
        files: that are read.
        data: a data module, whose folder, where it has one, is to be there.

    Raises:
        encoders.ArtifactError: a folder that holds no encoder.
        FileNotFoundError: a file, or the folder of the data, is not there.
        ValueError: a folder where a file should be.
    """
    for encoder in encoders:
        if str(encoder).endswith(".onnx"):
            check_regular(Path(encoder))
        else:
            check_encoder_folder(encoder)
    for file in files:
        check_regular(Path(file))
    check_root(getattr(data, "root", None))


def check_root(root: Any) -> None:
    """Raise FileNotFoundError where the folder of the data is not there; None is no folder and passes."""
    if isinstance(root, str | Path) and not Path(root).is_dir():
        raise FileNotFoundError(f"--data.root {shown(root)}: there is no such folder")
