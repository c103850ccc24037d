"""Numbers that must lie within bounds: refused by name before anything is built from them."""

import math
from collections.abc import Iterable, Sequence


def check_at_least(least: float, **values: float | Sequence[float] | None) -> None:
    """Raise ValueError where a number is below `least`, NaN or infinite; None is no number and passes.

    Args:
        least: smallest right value.
        values: argument's name to value, or to several.
    """
    for name, given in values.items():
        for value in given if isinstance(given, Sequence) else [given]:
            if value is not None and not least <= value < math.inf:
                bound = "finite" if least == -math.inf else f"{least:g} or more"
                raise ValueError(f"{name} must be {bound}, got {value}")


def check_above(bound: float, **values: float | None) -> None:
    """Raise ValueError where a number is not above `bound`, or is NaN or infinite; None passes."""
    for name, value in values.items():
        if value is not None and not bound < value < math.inf:
            raise ValueError(f"{name} must be above {bound:g}, got {value}")


def check_choice(what: str, word: object, choices: Iterable[str]) -> None:
    """Raise ValueError where a word is none of the choices."""
    if word not in (choices := list(choices)):
        raise ValueError(f"unknown {what} {word!r}: write one of {', '.join(choices)}")


def check_share(**values: float) -> None:
    """Raise ValueError where a number is not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
