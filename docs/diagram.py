"""Draw the pictures of docs/how_it_is_built.md from the imports.

    .venv/bin/python docs/diagram.py

Each picture is a Mermaid graph between two comments of the page; a test compares them with the imports.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("how_it_is_built.md")
PACKAGES = ("quant", "encoders", "export", "ssql")
HOUSE = "house"

Edges = set[tuple[str, str]]  # who imports, and what


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def drawn(page: str) -> str:
    """The text of the page with its pictures as the imports are now."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for name in (HOUSE, *PACKAGES):
        picture = house(graph) if name == HOUSE else rooms_and_files(graph, name)
        begin, end = f"<!-- picture of {name} -->\n", "<!-- end of the picture -->"
        block = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(block.findall(page)) != 1:
            raise ValueError(
                f"{PAGE} should have one place for the picture of {name}, between {begin.strip()} and {end}"
            )
        page = block.sub(lambda _, text=f"{begin}```mermaid\n{picture}\n```\n{end}": text, page)
    return page


def house(graph: grimp.ImportGraph) -> str:
    """The packages, their rooms inside, and the imports between packages."""
    lines = ["flowchart TD"]
    for package in reversed(PACKAGES):
        rooms = [child for child in sorted(graph.find_children(package)) if graph.find_children(child)]
        lines += [
            f'  subgraph {_id(package)}["{package}"]',
            *(f"    {_id(room)}{_shape(graph, room)}" for room in rooms),
        ]
        lines += ["  end"]
    between: Edges = set()
    for package in PACKAGES:
        for other in PACKAGES:
            importers = {child for child in graph.find_children(package) if _imports(graph, child, other)}
            if other != package and importers:
                # What one room alone does is said of the room.
                between.add((importers.pop() if len(importers) == 1 else package, other))
    return "\n".join(lines + _arrows(between))


def rooms_and_files(graph: grimp.ImportGraph, package: str) -> str:
    """The rooms (double walls) and files of a package, and the imports between them."""
    children = sorted(graph.find_children(package))
    edges = {(a, b) for a in children for b in children if a != b and _imports(graph, a, b)}
    return "\n".join(
        ["flowchart TD", *(f"  {_id(child)}{_shape(graph, child)}" for child in children), *_arrows(edges)]
    )


def _imports(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    """Whether anything in one module or package imports anything in another."""
    return any(
        _within(found, imported)
        for module in {importer, *graph.find_descendants(importer)}
        for found in graph.find_modules_directly_imported_by(module)
    )


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _arrows(edges: Edges) -> list[str]:
    """Without those that other arrows already imply."""
    shown = [(a, b) for a, b in sorted(edges) if not _reached(b, {c for d, c in edges if d == a} - {b}, edges)]
    return [f"  {_id(a)} --> {_id(b)}" for a, b in shown]


def _reached(target: str, starts: Iterable[str], edges: Edges) -> bool:
    seen, waiting = set(), list(starts)
    while waiting:
        module = waiting.pop()
        if module == target:
            return True
        if module not in seen:
            seen.add(module)
            waiting += [b for a, b in edges if a == module]
    return False


def _shape(graph: grimp.ImportGraph, child: str) -> str:
    name = child.rpartition(".")[2]
    return f'[["{name}/"]]' if graph.find_children(child) else f'["{name}"]'


def _id(module: str) -> str:
    """A name for Mermaid, to which words such as `graph` and `end` mean something."""
    return f"m_{module.replace('.', '_')}"


if __name__ == "__main__":
    main()
