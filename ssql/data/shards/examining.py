"""Whether what is to be packed can be decoded: by those who decode it in training."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ssql.data.clips import decoded
from ssql.data.image_file import ImageFileError, read_image
from ssql.data.layouts.entry import Entry

WHOLE = 2**62  # samples: no recording is cut


class Examined(NamedTuple):
    """What became of an entry when its file was decoded.

    Attributes:
        entry: of the list that was given.
        start: its first sample at 16,000 Hz; 0 for images.
        end: behind its last one.
        reason: why it cannot be used, in a word or two; empty where it can.
    """

    entry: Entry
    start: int = 0
    end: int = 0
    reason: str = ""


# Decodes the files of entries, in their order.
Examine = Callable[[Sequence[Entry]], Iterator[Examined]]


def examined_audio(entries: Sequence[Entry]) -> Iterator[Examined]:
    """Decode recordings to their end."""
    for entry, found in decoded(entries, WHOLE, cut=True, cache_bytes=0):
        if isinstance(found, str):
            yield Examined(entry, reason=found)
        else:
            part, _ = found[0]
            yield Examined(entry, part.start, part.end)


def examined_images(entries: Sequence[Entry]) -> Iterator[Examined]:
    """Decode images."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_examined_image, entries)


def _examined_image(entry: Entry) -> Examined:
    try:
        read_image(entry.path)
    except ImageFileError as error:
        return Examined(entry, reason=error.reason)
    except FileNotFoundError:
        return Examined(entry, reason="out of reach: it is gone")
    return Examined(entry)
