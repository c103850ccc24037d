"""At which bits an encoder is fine-tuned and measured, and how its ranges are found meanwhile."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import quant
from encoders import Encoder
from ssql.data import DataModule
from ssql.evaluation.calibration import calibrate_on, prepare_anew
from ssql.evaluation.evaluate import BIT_WIDTHS

RANDOM = "random"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Bits and quantizer of a fine-tuning run.

    Args:
        bit_width: `fp`; one, such as `w4a4`; or `random`, one model for all: each step a full-precision pass and a
            pass at drawn bits, as in pretraining.
        quantizer: `min_max` follows the smallest and largest input of each layer (a moving average, Jacob et al.
            2018); `lsq` learns the steps of weights and inputs, for one bit-width.
        policy: per-layer bit-widths and grids; the encoder's own when null, the published rule for a fresh one.
        test_at: bit-widths of the final test; those of validation when null (the run's own, or all for `random`).

    Raises:
        ValueError: an unknown bit-width, or steps learned for none or for several.
    """

    bit_width: str = "fp"
    quantizer: Literal["min_max", "lsq"] = "min_max"
    policy: quant.Policy | None = None
    test_at: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for bit_width in (*self.validate_at, *(self.test_at or ())):
            quant.parse_bit_width(bit_width)
        if self.quantizer == "lsq" and self.bit_width in ("fp", RANDOM):
            raise ValueError(
                f"quantizer lsq learns the steps of one bit-width, not of {self.bit_width}: give one such as w4a4, or "
                "quantizer min_max"
            )
        others = set(self.test_at or ()) - {"fp", self.bit_width}
        if self.quantizer == "lsq" and others:
            raise ValueError(
                f"steps learned at {self.bit_width} are no others': test_at {', '.join(sorted(others))} needs "
                "quantizer min_max"
            )

    @property
    def random(self) -> bool:
        """Whether each step draws its bits."""
        return self.bit_width == RANDOM

    @property
    def validate_at(self) -> list[str]:
        """Bit-widths of the validation split."""
        return list(BIT_WIDTHS) if self.random else [self.bit_width]

    @property
    def tests(self) -> list[str]:
        """Bit-widths of the test splits."""
        return list(self.test_at or self.validate_at)


def start_at(encoder: Encoder, precision: Precision, data: DataModule, batches: int) -> None:
    """Prepare an encoder, in place, for training at a precision: grids, ranges from training batches, learned steps.

    Raises:
        ValueError: its steps were learned for another run than this.
    """
    prepare_anew(encoder, precision.policy)
    drop_stale_corrections(encoder)
    learned = quant.learned_bit_width(encoder)
    if learned is not None:
        if precision.quantizer != "lsq" or learned != quant.parse_bit_width(precision.bit_width):
            raise ValueError(
                f"the encoder's steps were learned at {learned}: fine-tune it with bit_width {learned} and quantizer "
                "lsq, give it a policy to begin anew, or start from another encoder"
            )
        return
    if precision.bit_width == "fp":
        return
    calibrate_on(encoder, data, batches, "mse" if precision.quantizer == "lsq" else "min_max")
    if precision.quantizer == "lsq":
        quant.learn_steps(encoder, precision.bit_width)


def start_frozen(encoder: Encoder, precision: Precision) -> None:
    """Check that an encoder which does not learn can run at a precision with the ranges it has.

    Raises:
        ValueError: a quantizer that would learn, or another policy than the one its ranges were found under.
        NotCalibratedError: a layer has no range.
    """
    if precision.quantizer == "lsq" and precision.bit_width != "fp":
        raise ValueError(
            "quantizer lsq learns steps, a frozen encoder does not: use quantizer min_max, or freeze false"
        )
    if precision.policy is not None:
        raise ValueError("a frozen encoder keeps its policy and ranges: give it others with ssql quantize")
    prepare_anew(encoder, None)
    drawn = [f"w8a{bits}" for bits in range(4, 9)] if precision.random else []
    for bit_width in {*precision.validate_at, *precision.tests, *drawn}:
        with quant.at(encoder, bit_width):
            pass


def drop_stale_corrections(encoder: Encoder) -> None:
    """Forget the bias corrections of an encoder that is going to learn: they belong to the weights it has now."""
    dropped = quant.drop_corrections(encoder)
    if dropped:
        log.info(
            "bias corrections at %s are dropped, the encoder is going to learn: ssql quantize finds new ones",
            ", ".join(map(str, dropped)),
        )
