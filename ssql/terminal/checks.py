"""Lists and names that a type allows and a command does not: empty ones."""

from collections.abc import Sized


def not_empty(**values: Sized | None) -> None:
    """Refuse an option that lists or names nothing.

    Args:
        values: what was given, by the name of its option; None is not looked at.

    Raises:
        ValueError: an empty one.
    """
    for name, value in values.items():
        if value is not None and not len(value):
            raise ValueError(f"--{name} is empty: give at least one")
