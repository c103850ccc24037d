"""The bit-widths of a training step: a function of seed and step, the same on every rank and after a resume."""

import random
from collections.abc import Sequence

from quant import BitWidth


def draw_bit_width(
    seed: int,
    step: int,
    weight_bits: Sequence[int] = (2, 8),
    activation_bits: Sequence[int] = (4, 8),
    same: bool = False,
) -> BitWidth:
    """One weight and one activation bit-width for the whole network, drawn independently and uniformly.

    Args:
        seed: of the run.
        step: optimizer step (or epoch), from 0.
        weight_bits: smallest and largest, both included; 2 to 8 is published (Cao et al. 2022).
        activation_bits: smallest and largest, both included; 4 to 8 is published.
        same: activations take the weights' draw, held within `activation_bits`.
    """
    stream = random.Random(f"bit_width {seed} {step}")
    weight = stream.randint(*weight_bits)
    if same:
        return BitWidth(weight, min(max(weight, activation_bits[0]), activation_bits[1]))
    return BitWidth(weight, stream.randint(*activation_bits))


def draw_among(seed: int, step: int, bit_widths: Sequence[BitWidth], sandwich: bool = False) -> list[BitWidth]:
    """One of some bit-widths, drawn uniformly; or the coarsest of them, and one of the others.

    The sandwich is that of slimmable networks (Yu and Huang, ICCV 2019), whose largest is full precision here.

    Args:
        seed: of the run.
        step: optimizer step (or epoch), from 0.
        bit_widths: one or more.
        sandwich: the coarsest first, then another if there is one.
    """
    stream = random.Random(f"bit_width {seed} {step}")
    if not sandwich:
        return [stream.choice(bit_widths)]
    coarsest = min(bit_widths, key=lambda each: (each.weight, each.activation))
    others = [each for each in bit_widths if each != coarsest]
    return [coarsest, *([stream.choice(others)] if others else [])]
