"""Names and kinds of files that strangers leave: what can be opened, how a name is shown, which one was meant."""

import os
import stat
from difflib import get_close_matches
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(name: str | os.PathLike[str]) -> str:
    r"""A name that any stream, log and JSON file takes: bytes that are not UTF-8 are written like `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def kind_of(path: Path) -> str | None:
    """What a path is instead of a regular file: `a named pipe`, `a link to nothing`, ...; None for a regular file.

    Opening a named pipe or a device may block for ever, so look before.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "missing"
    except (OSError, ValueError) as error:  # a loop of links, a folder that may not be entered, a NUL in the name
        return f"out of reach ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def check_regular(path: Path) -> None:
    """Raise where a path is no regular file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder, named pipe, device, ...
    """
    kind = kind_of(path)
    if kind == "missing":
        raise FileNotFoundError(f"{shown(path)} does not exist")
    if kind is not None:
        raise ValueError(f"{shown(path)} is {kind}, not a regular file")


def nearest_folder(path: Path) -> Path | None:
    """The folder whose name is nearest to the first part of a path that does not exist; None where none is near."""
    missing = path
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    try:
        names = [child.name for child in missing.parent.iterdir() if child.is_dir()]
    except OSError:
        return None
    near = get_close_matches(missing.name, names, n=1)
    return missing.with_name(near[0]) if near else None
