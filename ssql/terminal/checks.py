"""Lists and names that a type allows and a command does not: empty ones."""

from collections.abc import Sequence, Sized

from quant.bits import parse_bit_width


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


def each_once(bit_widths: Sequence[str]) -> list[str]:
    """Bit-widths without those that are given again: measured twice, one would become a mean and a deviation of 0.

    Raises:
        ValueError: an unknown bit-width.
    """
    return list(dict.fromkeys(str(parse_bit_width(bit_width)) for bit_width in bit_widths))
