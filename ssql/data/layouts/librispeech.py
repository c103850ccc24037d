"""LibriSpeech's tree: SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac, and beside them SPEAKER-CHAPTER.trans.txt."""

import logging
from collections.abc import Iterator
from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, relative, some, split_of
from ssql.data.layouts.folder import audio_files
from ssql.data.layouts.rows import lines_of

log = logging.getLogger(__name__)
TRANSCRIPTS = "*.trans.txt"


def is_librispeech(root: Path) -> bool:
    """Whether transcripts lie two folders down, or three (train-clean-100/SPEAKER/CHAPTER)."""
    return any(next(root.glob(f"{above}/{TRANSCRIPTS}"), None) for above in ("*/*", "*/*/*"))


def read_librispeech(root: Path) -> list[Entry]:
    """Every audio file in such folders, with its speaker and its text.

    The folder above the speakers names the split, like train-clean-100.

    Raises:
        ValueError: a wrong row of a transcript; the sentence names file and row.
    """
    entries: list[Entry] = []
    elsewhere: list[str] = []
    texts: dict[str, str] = {}
    read: set[Path] = set()
    for path in audio_files(root):
        folders = path.relative_to(root).parent.parts
        if len(folders) < 2:
            elsewhere.append(relative(path, root))
            continue
        if path.parent not in read:
            read.add(path.parent)
            texts |= {name: text for file in sorted(path.parent.glob(TRANSCRIPTS)) for name, text in _lines(file)}
        split = split_of(folders[-3]) if len(folders) > 2 else None
        labels, text = {"speaker": shown(folders[-2])}, texts.pop(path.stem, None)
        entries.append(Entry(path, relative(path, root), labels, split, text))
    if elsewhere:
        log.warning("left out %d audio files that do not lie in SPEAKER/CHAPTER: %s", len(elsewhere), some(elsewhere))
    silent = [entry.name for entry in entries if entry.text is None]
    if silent:
        log.warning("%d recordings have no line in a transcript: %s", len(silent), some(silent))
    if texts:
        log.warning("%d lines of transcripts have no recording: %s", len(texts), some(texts))
    return entries


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    seen = set()
    for where, line in lines_of(file):
        name, _, text = line.partition(" ")
        if not text or name in seen:
            problem = "has no text behind its name" if not text else f"gives {name} a second text"
            raise ValueError(f"{where} {problem}: a row is NAME TEXT")
        seen.add(name)
        yield name, text.strip()
