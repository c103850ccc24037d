"""Bit-widths that an encoder was not quantized for, though it was for others: a note, and no error."""

import logging
from collections.abc import Iterable, Mapping

import quant
from encoders import Encoder
from quant.bias_correction import rounded_bit_widths
from quant.quantize import better_rounding
from ssql.evaluation.embeddings import ExportedFile
from ssql.evaluation.quantizers import Quantizer

log = logging.getLogger(__name__)


def note_unquantized(encoder: Encoder, bit_widths: Iterable[str], name: str) -> None:
    """Say which bit-widths `ssql quantize` did not look at, of an encoder that it did quantize for others.

    An encoder that was pretrained or fine-tuned for low bits has no chosen integers at any, and needs no note.

    Args:
        encoder: as it is saved.
        bit_widths: it is to run at.
        name: of the encoder, to begin with.
    """
    if not quant.is_prepared(encoder):
        return
    rounded, corrected = rounded_bit_widths(encoder), quant.corrected_bit_widths(encoder)
    # Where the nearest integers are the better choice, the biases alone tell of `ssql quantize`.
    known = rounded or [run for run in corrected if better_rounding(encoder, run) == "nearest"]
    asked = {quant.parse_bit_width(bit_width): None for bit_width in bit_widths}
    others = [str(run) for run in asked if run not in (quant.FULL_PRECISION, *rounded, *corrected)]
    if known and others:
        finest_first = sorted({*rounded, *corrected}, key=lambda run: (-run.weight, -run.activation))
        which, theirs = " and ".join(others), " and ".join(map(str, finest_first))
        log.warning(
            "note: %s was quantized for %s, and not for %s: there each weight takes its nearest integer and no bias is "
            "corrected; ssql quantize --bit_width '[%s]' chooses them on data",
            name, theirs, which, ", ".join(others),
        )  # fmt: skip


def note_unquantized_of(
    encoders: Mapping[str, Encoder | ExportedFile], bit_widths: Iterable[str], quantizers: Mapping[str, Quantizer]
) -> None:
    """The same for encoders that are measured: exported files have one bit-width, and new ranges drop what was chosen.

    Args:
        encoders: by their names in the table.
        bit_widths: they are measured at.
        quantizers: that they are measured with.
    """
    if any(quantizer.as_saved for quantizer in quantizers.values()):
        for name, encoder in encoders.items():
            if isinstance(encoder, Encoder):
                note_unquantized(encoder, bit_widths, name)
