"""Fields of a protobuf message as they lie in a file: what a large ONNX file holds, without reading its weights."""

from collections.abc import Iterator
from typing import NamedTuple

LENGTH = 2  # the kind of field that says its size
FIXED = {1: 8, 5: 4}  # bytes of the kinds that have a fixed size
# Numbers of fields: of a model its graph; of a graph its weights; of a weight what this package looks at.
GRAPH, INITIALIZER = 7, 5
NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 8, 9, 13, 14


class Field(NamedTuple):
    """One field: its number, where it starts (with its key), and where its content starts and ends, in bytes."""

    number: int
    start: int
    content: int
    end: int


def fields(buffer: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in a buffer, or memory map, between two places.

    Raises:
        ValueError: what lies there is no message.
    """
    while start < end:
        key, content = _number(buffer, start, end)
        kind = key & 7
        if kind == LENGTH:
            size, content = _number(buffer, content, end)
            stop = content + size
        elif kind in FIXED:
            stop = content + FIXED[kind]
        elif kind == 0:
            _, stop = _number(buffer, content, end)
        else:
            raise ValueError(f"byte {start} begins no field of protobuf")
        if stop > end:
            raise ValueError(f"the field at byte {start} ends at byte {stop}, beyond the {end} there are")
        yield Field(key >> 3, start, content, stop)
        start = stop


def field(number: int, size: int) -> bytes:
    """How a field of this number and so many bytes begins."""
    return _varint(number << 3 | LENGTH) + _varint(size)


def _number(buffer: bytes, place: int, end: int) -> tuple[int, int]:
    """A variable number, seven bits a byte with the lowest first, and the place after it."""
    value = shift = 0
    while place < end and shift < 70:
        byte = buffer[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError(f"the number before byte {place} has no end")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
