"""What is known of a recording, or of a part of one, before any audio is read."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from encoders.storage.paths import kind_of, shown

# Column of a manifest that holds a number to predict: `pitch (Hz)`.
TARGET = re.compile(r"(?P<name>.+) \((?P<unit>[^()]+)\)")
_SPLIT = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?|eval(?:uation)?)|(?P<validation>dev|val(?:id(?:ation)?)?))"
    r"(?:[^a-z].*)?"
)


@dataclass(slots=True)
class Entry:
    """A recording, or a part of one.

    Attributes:
        path: of the audio file.
        name: what messages call it and patterns are searched in: the path below the folder, or an id of the layout.
        labels: task to class name, or a column like `pitch (Hz)` to a number, as text.
        split: `train`, `test`, `validation`, or None where the layout does not say.
        text: what is said, where that is known.
        start: of the part, in seconds.
        end: of the part, in seconds; None is the end of the file.
        sample_rate: what a manifest says of the file, in Hz.
        where: file and row that say all this; empty where no manifest does.
    """

    path: Path
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    text: str | None = None
    start: float = 0.0
    end: float | None = None
    sample_rate: int | None = None
    where: str = ""


def below(folder: Path, name: str, where: str) -> Path:
    """The file that a manifest names; a relative name is one below the folder, an absolute one is taken as it is.

    Raises:
        ValueError: no name, or a relative one that leads out of the folder.
    """
    if not name:
        raise ValueError(f"{where} names no file")
    path = Path(os.path.normpath(folder / name))
    if not os.path.isabs(name) and not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(
            f"{where}: {shown(name)} leads out of {shown(folder)}: give a path below it, or an absolute one"
        )
    return path


def check_folder(root: Path) -> None:
    """Raise FileNotFoundError where a folder of recordings is not there, or is none."""
    if not root.is_dir():
        what = "is a file: give the folder that it lies in" if root.is_file() else "does not exist"
        raise FileNotFoundError(f"audio folder {shown(root)} {what}")


def relative(path: Path, root: Path) -> str:
    """A path as it is below a folder, with slashes, fit to be shown; whole where it lies elsewhere."""
    return shown(path.relative_to(root).as_posix() if path.is_relative_to(root) else path)


def split_of(name: str) -> str | None:
    """The split that a folder or manifest is named after, like `train-clean-100` or `dev`; None for other names."""
    match = _SPLIT.fullmatch(name.lower())
    return None if match is None else next(split for split in match.groupdict() if match[split])


def check_files(entries: Sequence[Entry]) -> None:
    """Raise ValueError where rows of a manifest name files that are not there, no files, or the same one twice.

    A file may come in several parts, and in one part several may speak: utterances of different names.
    """
    seen: dict[tuple[Path, float, float | None, str], Entry] = {}
    for entry in entries:
        part = bool(entry.start) or entry.end is not None
        first = seen.setdefault((entry.path, entry.start, entry.end, entry.name if part else ""), entry)
        if first is not entry:
            raise ValueError(f"{entry.where}: {shown(entry.path)} is listed already, in {first.where}")
    kinds = {path: kind_of(path) for path in {entry.path for entry in entries}}
    wrong = [entry for entry in entries if kinds[entry.path] is not None]
    if wrong:
        kind = kinds[wrong[0].path]
        what = "does not exist" if kind == "missing" else f"is {kind}, not an audio file"
        more = len(wrong) - 1
        others = f"; so it is with {more:,} more row{'s' * (more != 1)}" if more else ""
        raise ValueError(f"{wrong[0].where}: {shown(wrong[0].path)} {what}{others}")


def classes_and_targets(labels: Sequence[dict[str, str]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the labels of recordings, which all have the same columns, are.

    Returns:
        task to its class names in label order; name of a number to predict to its unit: of a column `name (unit)`.
    """
    targets = {column: match for column in labels[0] if (match := TARGET.fullmatch(column))}
    tasks = [column for column in labels[0] if column not in targets]
    classes = {task: sorted({of_one[task] for of_one in labels}) for task in tasks}
    return classes, {match["name"]: match["unit"] for match in targets.values()}


def counted(names: Sequence[str]) -> str:
    """How many files."""
    return f"{len(names):,} file{'s' * (len(names) != 1)}"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many there are more."""
    listed = list(names)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
