"""The pictures of docs/how_it_is_built.md are those of the imports."""

import importlib.util
from pathlib import Path

import grimp
import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "diagram.py"


@pytest.fixture(scope="module")
def diagram():
    spec = importlib.util.spec_from_file_location("diagram", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_imports_as_they_are(diagram):
    page = diagram.PAGE.read_text(encoding="utf-8")
    assert diagram.drawn(page) == page, "the imports have changed: run .venv/bin/python docs/diagram.py"


def test_arrows_point_from_who_imports_and_leave_out_what_others_imply(diagram):
    graph = grimp.ImportGraph()
    for module in ("a", "a.top", "a.room", "a.room.file", "a.low"):
        graph.add_module(module)
    graph.add_import(importer="a.top", imported="a.room.file")
    graph.add_import(importer="a.room.file", imported="a.low")
    graph.add_import(importer="a.top", imported="a.low")
    lines = diagram.rooms_and_files(graph, "a").splitlines()
    assert lines[1:4] == ['  m_a_low["low"]', '  m_a_room[["room/"]]', '  m_a_top["top"]']
    assert lines[4:] == ["  m_a_room --> m_a_low", "  m_a_top --> m_a_room"]


def test_a_page_without_a_place_for_a_picture_is_an_error(diagram):
    with pytest.raises(ValueError, match="one place for the picture of house"):
        diagram.drawn("# A page\n")
