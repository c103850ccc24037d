"""A plain folder of audio files, in folders of any depth; links to folders are followed."""

import logging
import os
from pathlib import Path

from encoders.speech.audio_file import AUDIO_NAMES, READ
from encoders.storage.paths import shown
from ssql.data.folder_files import Skipped, files_below
from ssql.data.layouts.entry import Entry, relative

log = logging.getLogger(__name__)


def read_folder(root: Path) -> list[Entry]:
    """Every file with the name of an audio file, readable or not; the folder it lies in is its class.

    Raises:
        ValueError: there is none.
    """
    paths = audio_files(root)
    if not paths:
        shards = "; it holds tar files: --data AudioShards reads those of ssql pack" if any(root.glob("*.tar")) else ""
        raise ValueError(f"audio folder {shown(root)} has no audio file ({', '.join(READ[:6])}, ...){shards}")
    return [Entry(path, relative(path, root), {"class": folder_name(path)}) for path in paths]


def folder_name(path: Path) -> str:
    """The name of the folder that a file lies in, also where it is given as `.`."""
    return shown(path.parent.name or path.parent.resolve().name)


def audio_files(root: Path) -> list[Path]:
    """Files below a folder whose names are those of sound or video, sorted.

    What links lead to as well is taken once, under its own name where it has one here. It is logged, as folders are
    that cannot be entered.
    """
    skipped, whole = Skipped(), os.path.realpath(root)
    found: dict[str, Path] = {}
    for path in files_below(root, skipped):
        if path.suffix.lower() not in AUDIO_NAMES:
            if path.is_symlink() and not path.exists():
                skipped.add("a link to nothing", path)
            continue
        real = os.path.realpath(path)
        kept = found.setdefault(real, path)
        if kept is not path:
            own = real == os.path.join(whole, path.relative_to(root))
            found[real] = path if own else kept
            skipped.add("here already, by another name", kept if own else path)
    skipped.warn(log, root)
    return sorted(found.values())
