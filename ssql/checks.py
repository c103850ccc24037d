"""Values that a type allows and a command does not: empty lists, and numbers that are too small."""

from collections.abc import Sequence, Sized


def not_empty(**values: Sized | None) -> None:
    """Refuse an option that lists nothing.

    Args:
        values: what was given, by the name of its option; None is not looked at.

    Raises:
        ValueError: an empty one.
    """
    for name, value in values.items():
        if value is not None and not len(value):
            raise ValueError(f"--{name} is empty: give at least one")


def at_least(minimum: float, **values: float | Sequence[float] | None) -> None:
    """Refuse an option that is too small, or has a number among its own that is.

    Args:
        minimum: that is allowed.
        values: one number or several, by the name of their option; None is not looked at.

    Raises:
        ValueError: one below the minimum, or not a number.
    """
    for name, value in values.items():
        for number in [] if value is None else value if isinstance(value, Sequence) else [value]:
            if not number >= minimum:
                raise ValueError(f"--{name} is {minimum:g} or more, not {number:g}")
