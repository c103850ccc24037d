"""JSON files of strangers: UTF-8, of a sensible size, and nothing in them that is not JSON."""

import json
import math
import re
from pathlib import Path
from typing import Any

from encoders.storage.paths import check_regular, shown

LARGEST = 64 * 2**20  # bytes
# Half of a character, maybe alone: no text that could be written again.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_strict_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, not UTF-8, not JSON (NaN and Infinity are not), nested too deep, or above 64 MiB;
            the sentence names the file.
    """
    check_regular(path)
    content = path.read_bytes()
    if len(content) > LARGEST:
        raise ValueError(f"{shown(path)} has {len(content):,} bytes: a JSON file here has at most {LARGEST:,}")
    text = decoded(content, path)
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError(f"{shown(path)} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{shown(path)} is not JSON: {error}") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, or not UTF-8; the sentence names the file, the line and the byte.
    """
    check_regular(path)
    return decoded(path.read_bytes(), path)


def decoded(content: bytes, path: Path) -> str:
    """The text of a file's bytes, UTF-8 with or without a byte order mark.

    Raises:
        ValueError: not UTF-8; the sentence names the file, the line and the byte.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{shown(path)} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start} (line {line}); "
            "save the file as UTF-8"
        ) from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is beyond every float")
    return number
