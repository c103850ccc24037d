"""How an encoder is quantized while it is measured: as it is saved, or with ranges found anew."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import quant
from encoders import weights_sha256
from encoders.base import Encoder
from quant.checks import check_choice
from quant.ranges.observers import OBSERVERS
from ssql.data import DataModule
from ssql.evaluation.calibration import calibrate_on, correct_bias_on

AS_SAVED = "as_saved"
log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Quantizer:
    """How an encoder is quantized while it is measured.

    Args:
        observer: `as_saved`, the encoder as it is: its own policy, ranges, learned steps and bias corrections, which
            is what is exported. Or how new activation ranges are found: min_max, moving_average, mse.
        policy: of new ranges: per-layer bit-widths and grids; the encoder's own when None.
        bias_correction: of new ranges: keep each layer's mean output that of full precision (`quant.correct_bias`),
            which a head trained at full precision asks for.

    Raises:
        ValueError: an unknown observer, or `as_saved` with a policy or bias correction of its own.
    """

    observer: str = AS_SAVED
    policy: quant.Policy | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        check_choice("observer", self.observer, (AS_SAVED, *OBSERVERS))
        if self.as_saved and (self.policy or self.bias_correction):
            raise ValueError(
                "a quantizer with a policy or bias correction needs an observer that finds ranges anew (min_max, "
                "moving_average, mse): as_saved changes nothing"
            )

    @property
    def as_saved(self) -> bool:
        """Whether nothing is changed."""
        return self.observer == AS_SAVED


def quantized(
    method: str,
    encoder: Encoder,
    data: DataModule,
    bit_widths: Sequence[str],
    calibration_batches: int = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> Iterator[tuple[Encoder, Row]]:
    """An encoder in each way and at each bit-width in turn; it is left as it is.

    Arguments as in `evaluate`.

    Yields:
        the encoder to measure, which shares the weights, and what all rows of the measurement have in common: method,
        bit_width, quantizer, calibration_clips, weights_sha256, size_bytes.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    own_sha256 = weights_sha256(encoder)
    for name, quantizer in quantizers.items():
        if quantizer.as_saved:
            variant, clips = in_full_precision(encoder), None
        else:
            variant, policy = _sharing_weights(encoder), quantizer.policy
            if quant.is_prepared(variant):  # learned steps and bias corrections are left behind
                policy = policy or quant.policy_of(variant)
                quant.unprepare(variant)
            calibrate_on(quant.prepare(variant, policy), data, calibration_batches, quantizer.observer)
            clips = min(calibration_batches * data.batch_size, len(data.dataset("train")))  # type: ignore[arg-type]
        label = method + f", {name}" * (len(quantizers) > 1)
        for bit_width in sorted(bit_widths, key=lambda bits: bits != "fp"):  # fp first
            if quantizer.bias_correction and bit_width != "fp":
                correct_bias_on(variant, data, calibration_batches, bit_width)
            common = {"method": label, "bit_width": bit_width, "quantizer": name, "calibration_clips": clips}
            common["weights_sha256"] = own_sha256 if quantizer.as_saved else weights_sha256(variant)
            yield variant, common | {"size_bytes": round(quant.model_bytes(variant, bit_width))}
            log.info("%s at %s done", label, bit_width)


def in_full_precision(encoder: Encoder) -> Encoder:
    """The encoder itself where it is prepared; else a copy that is, sharing its weights: it runs at `fp`."""
    return encoder if quant.is_prepared(encoder) else quant.prepare(_sharing_weights(encoder))


def float_weights_sha256(encoder: Encoder) -> str:
    """Hash of what decides the features at full precision: the weights without ranges, chosen integers and policy."""
    plain = _sharing_weights(encoder)
    return weights_sha256(quant.unprepare(plain) if quant.is_prepared(plain) else plain)


def _sharing_weights(encoder: Encoder) -> Encoder:
    """A copy with ranges, running statistics and mode of its own, but the very Parameters."""
    return copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})
