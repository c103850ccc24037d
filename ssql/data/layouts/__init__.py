"""Layouts that people's recordings lie in: each is a function from a folder to entries, no audio is read."""

import logging
from pathlib import Path
from typing import Literal, get_args

from encoders.storage.paths import shown
from ssql.data.layouts.common_voice import is_common_voice, read_common_voice
from ssql.data.layouts.entry import Entry, check_files, check_folder, relative, some
from ssql.data.layouts.folder import audio_files, read_folder
from ssql.data.layouts.huggingface import is_huggingface, read_huggingface
from ssql.data.layouts.kaldi import is_kaldi, read_kaldi
from ssql.data.layouts.librispeech import is_librispeech, read_librispeech
from ssql.data.layouts.nemo import is_nemo, read_nemo

__all__ = ["Entry", "Layout", "found_layout", "read_layout"]

log = logging.getLogger(__name__)

Layout = Literal["auto", "folder", "librispeech", "common_voice", "kaldi", "huggingface", "nemo"]
# In the order in which they are looked for.
_LAYOUTS = {
    "kaldi": (is_kaldi, read_kaldi),
    "common_voice": (is_common_voice, read_common_voice),
    "huggingface": (is_huggingface, read_huggingface),
    "nemo": (is_nemo, read_nemo),
    "librispeech": (is_librispeech, read_librispeech),
    "folder": (Path.is_dir, read_folder),
}
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".scp")  # names that manifests have
# Their entries are the files that lie there; those of the others are the rows of manifests.
_OF_FILES = ("folder", "librispeech")


def read_layout(root: Path, layout: Layout = "auto") -> list[Entry]:
    """What a folder holds, in one of the layouts; which one is found by what lies there, and logged.

    Audio files that no manifest of the layout lists, and files of manifests that lie outside of the folder, are logged.
    A label that some row leaves empty is left out of all.

    Args:
        root: the folder.
        layout: one of the layouts, or `auto`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such layout, nothing in this layout, or a wrong row; the sentence names file and row.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}, not one of {', '.join(get_args(Layout))}")
    check_folder(root)
    chosen = found_layout(root) if layout == "auto" else layout
    if chosen != "folder":
        log.info("%s is read in the layout %s (--data.layout)", shown(root), chosen)
    elif layout == "auto":
        _say_unknown_tables(root)
    entries = _LAYOUTS[chosen][1](root)
    if not entries:
        raise ValueError(f"{shown(root)} has no recording in the layout {chosen}")
    if chosen not in _OF_FILES:
        check_files(entries)
        _say_unlisted(entries, root, chosen)
    return _without_gaps(entries)


def found_layout(root: Path) -> str:
    """The layout that a folder is in, by what lies there."""
    return next(name for name, (is_there, _) in _LAYOUTS.items() if is_there(root))


def _say_unknown_tables(root: Path) -> None:
    """A manifest whose first row is wrong is none of a known layout, and its labels would be missed in silence."""
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in TABLES)
    if tables:
        log.info(
            "%s is read as a plain folder; these are no manifests of a known layout: %s (--data.layout NAME says why)",
            shown(root), some(map(shown, tables)),
        )  # fmt: skip


def _say_unlisted(entries: list[Entry], root: Path, layout: str) -> None:
    listed = {entry.path for entry in entries}
    left = [relative(path, root) for path in audio_files(root) if path not in listed]
    if left:
        log.warning(
            "left out %s audio files that the %s manifest does not list: %s", f"{len(left):,}", layout, some(left)
        )
    outside = sorted(shown(path) for path in listed if not path.is_relative_to(root))
    if outside:
        log.info("%s audio files lie outside of %s: %s", f"{len(outside):,}", shown(root), some(outside))


def _without_gaps(entries: list[Entry]) -> list[Entry]:
    columns = {column for entry in entries for column in entry.labels}
    gaps = {column: sum(not entry.labels.get(column) for entry in entries) for column in sorted(columns)}
    for column, missing in gaps.items():
        if missing:
            if missing < len(entries):
                log.info("%s is no label: %s of %s recordings have none", column, f"{missing:,}", f"{len(entries):,}")
            for entry in entries:
                entry.labels.pop(column, None)
    return entries
