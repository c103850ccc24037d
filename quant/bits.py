"""Bit-widths as people write them: `fp`, `w8a8`, `w4a8`, `w2a4`, `w4a32`."""

import re
from dataclasses import dataclass

FLOAT_BITS = 32
INTEGER_BITS = (2, 3, 4, 5, 6, 7, 8)
_PATTERN = re.compile(r"w(\d+)a(\d+)", re.ASCII)
# What other tools write, and what it is called here.
_ELSEWHERE = {f"int{bits}": f"w{bits}a8" for bits in INTEGER_BITS} | dict.fromkeys(("fp32", "float32", "float"), "fp")


@dataclass(frozen=True)
class BitWidth:
    """Bits of weights and of activations in one run of a model.

    Args:
        weight: 2 to 8 bits, or 32 for float.
        activation: 2 to 8 bits, or 32 for float.

    Raises:
        ValueError: another number of bits.
    """

    weight: int = FLOAT_BITS
    activation: int = FLOAT_BITS

    def __post_init__(self) -> None:
        for what, bits in (("weight", self.weight), ("activation", self.activation)):
            check_bits(bits, f"{what} bits")

    def __str__(self) -> str:
        return "fp" if self == FULL_PRECISION else f"w{self.weight}a{self.activation}"


def check_bits(bits: int, what: str) -> None:
    """Raise ValueError unless `bits` is 2 to 8 (integers) or 32 (float)."""
    if bits not in (*INTEGER_BITS, FLOAT_BITS):
        why = ": one bit with a sign holds only -1 and 0" if bits == 1 else ""
        raise ValueError(f"{what} must be 2 to 8, or 32 for float; got {bits}{why}")


def row_of(bits: int) -> int:
    """Where a bit-width from 2 to 8 stands in buffers with one value per bit-width, shape (7,)."""
    return bits - INTEGER_BITS[0]


FULL_PRECISION = BitWidth()


def parse_bit_width(text: "str | BitWidth") -> BitWidth:
    """Read `fp`, or `w<weight bits>a<activation bits>`; 32 leaves that side in float.

    Raises:
        ValueError: anything else, with the forms that would be right.

    Example:
        >>> import quant
        >>> quant.parse_bit_width("w4a8").weight
        4
    """
    if isinstance(text, BitWidth):
        return text
    if text == "fp":
        return FULL_PRECISION
    match = _PATTERN.fullmatch(text)
    if not match:
        here = _ELSEWHERE.get(text.lower()) or (text.lower() if _PATTERN.fullmatch(text.lower()) else None)
        right = f"{text} is {here}" if here else "write fp, or like w8a8, w4a8, w2a4, w4a32"
        raise ValueError(f"unknown bit-width {text!r}: {right}")
    try:
        return BitWidth(int(match[1]), int(match[2]))
    except ValueError as error:
        raise ValueError(f"unknown bit-width {text!r}: {error}") from None
