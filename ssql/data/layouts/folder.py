"""A plain folder of audio files, in folders of any depth; links to folders are followed."""

import logging
import os
from pathlib import Path

from encoders.speech.audio_file import AUDIO_NAMES, READ
from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, relative, some

log = logging.getLogger(__name__)


def read_folder(root: Path) -> list[Entry]:
    """Every file with the name of an audio file, readable or not; the folder it lies in is its class.

    Raises:
        ValueError: there is none.
    """
    paths = audio_files(root)
    if not paths:
        raise ValueError(f"audio folder {shown(root)} has no audio file ({', '.join(READ[:6])}, ...)")
    return [Entry(path, relative(path, root), {"class": folder_name(path)}) for path in paths]


def folder_name(path: Path) -> str:
    """The name of the folder that a file lies in, also where it is given as `.`."""
    return shown(path.parent.name or path.parent.resolve().name)


def audio_files(root: Path) -> list[Path]:
    """Files below a folder whose names are those of sound or video, sorted.

    A folder that links lead to as well is looked into once, under its own name where it has one here. Folders that
    cannot be entered, links to nothing, and links that lead where one has been, are logged as warnings.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    shut: list[str] = []
    again: list[str] = []
    waiting: list[Path] = [root]
    links: list[Path] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)  # links last: real folders go by their own names
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                again.append(relative(folder, root))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as inside:
                children = sorted(inside, key=lambda child: child.name)
        except OSError:
            shut.append(relative(folder, root))
            continue
        for child in children:
            path = folder / child.name
            if os.path.splitext(child.name)[1].lower() in AUDIO_NAMES:
                found.append(path)  # a folder by such a name too: it is named when it is opened
            elif os.path.isdir(path):
                (links if child.is_symlink() else waiting).append(path)
            elif child.is_symlink() and not os.path.exists(path):
                shut.append(relative(path, root))
    if shut:
        log.warning("left out %d folders or links that lead nowhere or may not be entered: %s", len(shut), some(shut))
    if again:
        log.warning("left out %d links to folders that are here already: %s", len(again), some(again))
    return sorted(found)
