"""Every file below a folder, and a line of the log for those that are left out."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from encoders.storage.paths import shown

NAMED = 3  # files that a line of the log names


class Skipped(defaultdict[str, list[Path]]):
    """Files and folders that are left out, by the reason in a few words."""

    def __init__(self) -> None:
        super().__init__(list)

    def add(self, reason: str, path: Path) -> None:
        """Leave a file out."""
        self[reason].append(path)

    def warn(self, log: logging.Logger, root: Path) -> None:
        """A line for each reason: how many, and the first of them."""
        for reason, paths in self.items():
            count = f"{len(paths)} file{'s' * (len(paths) > 1)}"
            log.warning("skipped %s of %s (%s): %s", count, shown(root), reason, first_names(paths, root))


def first_names(paths: Sequence[Path], root: Path) -> str:
    """The first names, as they are below a folder."""
    names = [shown(path.relative_to(root)) for path in paths[:NAMED]]
    return ", ".join(names) + " ..." * (len(paths) > NAMED)


def files_below(folder: Path, skipped: Mapping[str, list[Path]], above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, in the order of their names; links to folders are followed.

    Args:
        folder: that is searched, with its folders.
        skipped: gets the folders that cannot be opened, or that hold themselves by way of a link.
        above: real paths of the folders around it.

    Yields:
        what is no folder: regular files, and links to nothing, pipes and the like, which a reader refuses by name.
    """
    real = os.path.realpath(folder)
    if real in above:
        skipped["a link to a folder around it"].append(folder)
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        skipped[f"out of reach: {error.strerror}"].append(folder)
        return
    for entry in entries:
        path = folder / entry.name
        if path.is_dir():
            yield from files_below(path, skipped, above | {real})
        else:
            yield path
