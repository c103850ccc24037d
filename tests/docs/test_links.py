"""Documents point to what is there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pages import HOME, PAGES, prose, spans

# What a reader's commands make, or what is a reader's own.
MADE = (
    "runs/", "data/", "encoder/", "model/", "simsiam/", "checkpoints/", "logs/", "onnxruntime/", "whisper-base/",
    "train/", "test/",
)  # fmt: skip
FOLDERS = ("quant", "encoders", "export", "ssql", "tests", "docs", "experiments", "benchmarks", "examples")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as web pages of repositories name them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} points to {target}"
        assert HOME in there.parents
        assert not anchor or anchor in anchors(there), f"{page.name} points to {target}; there is {anchors(there)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    for span in spans(page):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./]*", span):
            assert (HOME / span).exists(), f"{page.name} names {span}"
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)*/[\w.-]*", span) and "CLASS" not in span:
            assert span.startswith(MADE), f"{page.name} names {span}, which is neither here nor made by a command"
    for diagram in re.findall(r"<br/>([a-z_]+/[\w./]+)", page.read_text(encoding="utf-8")):
        for path in diagram.split(", "):
            assert (HOME / path).exists(), f"a picture of {page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [f"{number}: {len(line)}" for number, line in enumerate(lines, 1) if len(line) > 128 and line[0] != "|"]
    assert not long, f"{page.name} has lines of more than 128 characters: {', '.join(long)}"


def test_every_page_is_in_the_index():
    index = (HOME / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()
