"""Wrong words and characters of what was read: the fewest edits, and which of them were insertions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# One edit costs this much, an insertion one more: so of all shortest ways the one with the fewest insertions is found.
_EDIT = 2**32


class Edits(NamedTuple):
    """What makes a text of another.

    Attributes:
        wrong: substitutions, deletions and insertions, as few as there can be.
        inserted: of them insertions, as few as there can be with so few edits.
        length: words or characters that were right to say.
    """

    wrong: int
    inserted: int
    length: int


def edits(said: Sequence[str], read: Sequence[str]) -> Edits:
    """Edits from what was said to what was read (Levenshtein distance).

    Args:
        said: words, or a text for its characters.
        read: the same of what a reader made of it.

    Example:
        >>> edits("the cat sat".split(), "a the cat sad".split())
        Edits(wrong=2, inserted=1, length=3)
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*said, *read]))}
    found = np.array([numbers[word] for word in read], np.int64)
    inserting = (_EDIT + 1) * np.arange(len(read) + 1)
    cost = inserting.copy()  # of reading the first words of `read` where nothing was said
    for word in said:
        substituted = cost[:-1] + _EDIT * (found != numbers[word])
        cost = cost + _EDIT  # the word is left out
        cost[1:] = np.minimum(cost[1:], substituted)
        cost = np.minimum.accumulate(cost - inserting) + inserting
    return Edits(int(cost[-1]) // _EDIT, int(cost[-1]) % _EDIT, len(said))
