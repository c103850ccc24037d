"""Recordings with the labels, texts and splits that a user asks for: what training and packing read from."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ssql.data.layouts import Entry, Layout, read_layout
from ssql.data.layouts.entry import check_files, check_folder
from ssql.data.layouts.folder import folder_name
from ssql.data.layouts.manifest import ENDINGS, read_manifest
from ssql.data.texts import Spelling, read_transcripts

log = logging.getLogger(__name__)

OF_LAYOUT = "layout"  # labels, or texts, are what the layout says


def list_entries(
    root: Path,
    layout: Layout = "auto",
    labels: str | None = OF_LAYOUT,
    texts: str | Path | Spelling | None = None,
    test_pattern: str | None = None,
) -> list[Entry]:
    """The recordings below a folder, each with a split `train` or `test`; no audio is read.

    Args:
        root: the folder.
        layout: see `ssql.data.layouts`.
        labels: `layout`, `folder`, a manifest, a regular expression or None, as `ssql.data.AudioFolder` has it.
        texts: None leaves entries the text that their layout knows, if any; others are as `ssql.data.AudioFolder` has
            them, and then each entry has a text.
        test_pattern: regular expression, searched in names, that marks the test split.

    Raises:
        FileNotFoundError: no such folder, manifest or transcript file.
        ValueError: nothing there, a wrong row, a name that the expression of labels does not match, a recording without
            a text; the sentence names it.
    """
    if is_manifest(labels):
        check_folder(root)
        entries = read_manifest(Path(str(labels)), root)
        check_files(entries)
    else:
        entries = read_layout(root, layout)
        if labels != OF_LAYOUT:
            label = _labelling(labels)
            for entry in entries:
                entry.labels = label(entry)
    entries = _split(entries, test_pattern)
    _add_texts(entries, texts)
    return entries


def is_manifest(labels: str | None) -> bool:
    """Whether labels name a manifest."""
    return labels is not None and labels.lower().endswith(ENDINGS)


def compiled(pattern: str, argument: str) -> re.Pattern[str]:
    """A regular expression that a user wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} {pattern!r} is not a regular expression: {error}") from None


def _labelling(labels: str | None) -> Callable[[Entry], dict[str, str]]:
    if labels is None:
        return lambda entry: {}
    if labels == "folder":
        return lambda entry: {"class": folder_name(entry.path)}
    pattern = compiled(labels, "labels")
    if not pattern.groupindex:
        raise ValueError(f"labels {labels!r} has no named group: write like (?P<speaker>[a-z]+)_")

    def groups(entry: Entry) -> dict[str, str]:
        match = pattern.search(entry.name)
        if not match:
            raise ValueError(f"file {entry.name} does not match labels {labels!r}")
        found = match.groupdict()
        if None in found.values():
            absent = next(group for group, text in found.items() if text is None)
            raise ValueError(
                f"file {entry.name} gives labels {labels!r} no {absent}: that group is optional, and every file needs "
                "a label"
            )
        return found

    return groups


def _add_texts(entries: Sequence[Entry], texts: str | Path | Spelling | None) -> None:
    if texts is None:
        return
    if isinstance(texts, Spelling):
        for entry in entries:
            entry.text = texts.text(entry.labels)
    elif str(texts) != OF_LAYOUT:
        transcripts = read_transcripts(Path(texts))
        for entry in entries:
            entry.text = transcripts.get(entry.name)
        if strangers := list(transcripts.keys() - {entry.name for entry in entries}):
            log.info(
                "%d of %d lines of %s name no recording that is there, such as %s",
                len(strangers), len(transcripts), texts, min(strangers),
            )  # fmt: skip
    missing = [entry.name for entry in entries if entry.text is None]
    if missing:
        of = f"{len(missing)} of {len(entries)} audio files, the first of them {missing[0]}"
        if str(texts) == OF_LAYOUT:
            raise ValueError(f"the layout has no text for {of}: add them, or give --data.texts a file of its own")
        raise ValueError(
            f"transcript file {texts} has no line for {of}; a line is PATH<TAB>TEXT, with the path as it is below the "
            "folder"
        )


def _split(entries: list[Entry], test_pattern: str | None) -> list[Entry]:
    if test_pattern:
        pattern = compiled(test_pattern, "test_pattern")
        for entry in entries:
            entry.split = "test" if pattern.search(entry.name) else "train"
        return entries
    named = {entry.split for entry in entries}
    if "validation" in named:
        if named & {"train", "test"}:
            kept = [entry for entry in entries if entry.split != "validation"]
            log.info("left out %s recordings of the validation split", f"{len(entries) - len(kept):,}")
            entries = kept
        else:
            for entry in entries:
                entry.split = None
    for index, entry in enumerate(entries):
        if entry.split is None:
            entry.split = "test" if index % 10 == 9 else "train"
    return entries
