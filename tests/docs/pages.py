"""What the documents say: their code blocks, the commands in them, and what they point to."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parents[2]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """Code blocks in a language ('' for a shell's), without their indentation."""
    return [
        Block(page.name, language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for page in PAGES
        for indent, found, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def command_lines(page: str) -> list[str]:
    """What a reader of a page types, in order: one line each, without comments."""
    text = "\n".join(block.text for block in blocks("") if block.page == page)
    lines = text.replace("\\\n", " ").splitlines()
    return [stripped for line in lines if (stripped := re.sub(r"(^|\s+)#.*", "", line).strip())]


def words_of(line: str) -> list[str] | None:
    """The words behind `ssql` in a line, which may begin with a launcher such as srun; None for another command."""
    found = re.search(r"(?:^|\s)(?:ssql|\$\(which ssql\))\s+(.*)", line)
    return shlex.split(found[1]) if found else None


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    """What stands between single backticks in a page's prose."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(page))]
