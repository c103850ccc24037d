"""Rows of manifests as people save them: CSV, TSV and JSON lines in UTF-8, whatever the locale."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders.storage.paths import shown
from encoders.storage.strict_json import read_text


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table with a header: where each stands (`m.csv row 3`), and its fields by column.

    A name that ends in `.tsv` says tabs and no quotes, as Common Voice writes them; every other one commas. Lines may
    end as on Windows, a byte order mark may come first, empty lines are passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, not such a table, columns without names or of the same name, or a row with more or fewer
            fields than the header; the sentence names file and row.
    """
    text, name = io.StringIO(read_text(path), newline=""), shown(path)
    tabs = path.suffix.lower() == ".tsv"
    lines = csv.reader(text, **_TABS) if tabs else csv.reader(text, strict=True)
    header: list[str] | None = None
    try:
        for fields in lines:
            if not fields:
                continue
            if header is None:
                header = fields
                if len(set(header)) < len(header) or "" in header:
                    raise ValueError(f"{name} needs columns with names, all different; it has {header}")
                continue
            where = f"{name} row {lines.line_num}"
            if len(fields) != len(header):
                raise ValueError(f"{where} has {len(fields)} fields, the header has {len(header)}: {', '.join(header)}")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name} row {lines.line_num} is not {'TSV' if tabs else 'CSV'}: {error}") from None


def columns_of(path: Path) -> list[str]:
    """The header of a table, or the keys of the first JSON line; empty where a file has none that can be read."""
    try:
        with path.open("rb") as file:
            lines = (line.decode("utf-8-sig").strip() for line in iter(lambda: file.readline(2**16), b""))
            first = next(filter(None, lines), "")
        if path.suffix.lower() in JSON_NAMES:
            value = json.loads(first)
            return list(value) if isinstance(value, dict) else []
        return first.split("\t") if path.suffix.lower() == ".tsv" else next(csv.reader([first]), [])
    except (OSError, ValueError, csv.Error, RecursionError):
        return []


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file that are not empty: where each stands (`m.txt row 3`), and the line, stripped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines knows ends that texts contain
        if line.strip():
            yield f"{shown(path)} row {number}", line.strip()


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON lines: where each stands (`m.jsonl row 3`), and the object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, or a line that is no JSON object or holds half of a character, which could not be written
            again; the sentence names file and row.
    """
    for where, line in lines_of(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not a JSON object, like {{...}}")
        if re.search(_HALF, json.dumps(value, ensure_ascii=False)):
            raise ValueError(f"{where} holds half of a character, like \\ud83d: write the whole one, in UTF-8")
        yield where, value


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table or of JSON lines, by the file's name; every value as text, null as nothing.

    Raises:
        FileNotFoundError, ValueError: as `table_rows` and `json_rows`.
    """
    if path.suffix.lower() not in JSON_NAMES:
        yield from table_rows(path)
        return
    for where, row in json_rows(path):
        yield where, {key: "" if value is None else str(value) for key, value in row.items()}


def seconds_of(value: Any, name: str, where: str) -> float:
    """A time of a row, in seconds.

    Raises:
        ValueError: no number, negative, or not finite.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{where}: {name} is {value!r}, not a number of seconds")
    return seconds


_HALF = "[\ud800-\udfff]"  # of a character that UTF-16 writes in two
JSON_NAMES = (".jsonl", ".json")
_TABS: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
