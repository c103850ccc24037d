"""What is said in audio files: from a transcript file, or from the files' labels."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encoders.storage.paths import shown
from encoders.storage.strict_json import read_text


@dataclass(frozen=True)
class Spelling:
    """The text of a clip is the name of its class, or what the class is spelled like.

    Args:
        task: whose class names say what is spoken.
        words: class name to text, for classes that are named otherwise: {"7": seven}.
    """

    task: str
    words: Mapping[str, str] = field(default_factory=dict)

    def text(self, labels: Mapping[str, str]) -> str:
        """The text of a file with these labels.

        Raises:
            ValueError: the files have no such label.
        """
        if self.task not in labels:
            raise ValueError(f"texts come from task {self.task!r}, but the labels are: {', '.join(labels) or 'none'}")
        return self.words.get(labels[self.task], labels[self.task])


def read_transcripts(path: Path) -> dict[str, str]:
    """Relative path of an audio file to its text, from a file of lines `path<TAB>text` without a header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, a line that has another form, or a path that comes twice.
    """
    try:
        lines = io.StringIO(read_text(path), newline="")
    except FileNotFoundError:
        raise FileNotFoundError(f"transcript file {shown(path)} does not exist") from None
    texts: dict[str, str] = {}
    try:
        for number, row in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not row:  # an empty line
                continue
            if len(row) == 2 and not row[1].strip():
                raise ValueError(f"{shown(path)} line {number}: the text of {row[0]} is empty: leave the recording out")
            if len(row) != 2 or not row[0]:
                raise ValueError(f"{shown(path)} line {number} is not path<TAB>text")
            if row[0] in texts:
                raise ValueError(f"{shown(path)} line {number}: {row[0]} has a text already")
            texts[row[0]] = row[1]
    except csv.Error as error:
        raise ValueError(f"{shown(path)} is not a list of lines path<TAB>text: {error}") from None
    return texts
