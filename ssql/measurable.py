"""Whether encoders can be measured as asked: known before any data is loaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

import quant
from encoders.encoder import Encoder
from quant.checks import check_at_least
from quant.observers import parse_observer

if TYPE_CHECKING:
    from ssql.evaluate import Quantizer


def check_measurable(
    encoders: Mapping[str, Encoder],
    bit_widths: Sequence[str],
    calibration_batches: int | Sequence[int],
    quantizers: Mapping[str, "Quantizer"] | None,
) -> None:
    """Raise ValueError for what could only fail after the first measurements; arguments as in `ssql.evaluate`.

    That is: no or an unknown bit-width, less than one calibration batch, an unknown observer, and an encoder whose
    steps were learned at another bit-width.
    """
    if not bit_widths:
        raise ValueError("no bit-width to measure at: write like '[fp, w8a8]'")
    runs = [quant.parse_bit_width(bit_width) for bit_width in bit_widths]
    sizes = [calibration_batches] if isinstance(calibration_batches, int) else list(calibration_batches)
    if not sizes:
        raise ValueError("calibration_batches is an empty list: give at least one size")
    for size in sizes:
        check_at_least(1, calibration_batches=size)
    keeping = [quantizer for quantizer in (quantizers or {}).values() if quantizer.policy is None]
    for quantizer in (quantizers or {}).values():
        parse_observer(quantizer.observer)
    for method, encoder in encoders.items():
        learned = _learned(encoder)
        others = [str(run) for run in runs if run not in (quant.FULL_PRECISION, learned)]
        if learned is not None and others and (keeping or not quantizers):
            raise ValueError(
                f"{method} has steps learned at {learned}, it runs at that and at fp, not at {', '.join(others)}: "
                f"write bit_widths '[fp, {learned}]', or give the quantizer a policy to begin anew"
            )


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError where one of the values of clips or images, (count, ...), is NaN or infinite.

    Args:
        values: of a whole split, in its order.
        what: what they are, for the message: `embeddings at w4a4 of the split test`.
    """
    wrong = (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{what} are NaN or infinite for {len(wrong)} of {len(values)} items, the first of them item {wrong[0]}: "
            "look at the encoder's weights and at that item"
        )


def _learned(encoder: Encoder) -> quant.BitWidth | None:
    prepared = any(isinstance(module, quant.QuantLayer) for module in encoder.modules())
    return quant.learned_bit_width(encoder) if prepared else None
