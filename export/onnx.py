"""Write an encoder at a bit-width as an ONNX file: whole and verified, or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper
from torch import Tensor

from encoders import Encoder
from export.four_bits import store_four_bits
from export.metadata import VerificationError, metadata
from export.qdq import WEIGHT, to_qdq
from export.signature import frozen_copy
from export.trace import trace
from export.verify import verify
from quant import FULL_PRECISION, BitWidth, at, parse_bit_width
from quant.activation import RANGE_BUFFERS

LARGEST_FILE = 2**31 - 2**20  # bytes; protobuf's limit, less room for the graph


def to_onnx(
    encoder: Encoder,
    path: str | Path,
    bit_width: str | BitWidth = "fp",
    overwrite: bool = False,
    check: bool = True,
    waveforms: Sequence[Tensor] | None = None,
    image_size: int | None = None,
) -> Path:
    """Export an encoder at a bit-width; integers and scales are those of `quant`.

    Speech: inputs `log_mel` (batch, n_mels, frames) and `lengths` (batch,) int64; outputs `features`
    (batch, frames', feature_dim) and `feature_lengths` (batch,) int64. Vision: input `images`, normalized
    pixels (batch, channels, height, width); output `features` (batch, feature_dim). Batch and time are
    dynamic. Weights of 4 bits and fewer are INT4 initializers behind a Cast to INT8, which ONNX Runtime
    folds when a session starts: the size of 4 bits at the speed of 8.

    Args:
        encoder: prepared and calibrated unless bit_width is `fp`; left untouched.
        path: the file to write; it appears whole and verified, or not at all.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        overwrite: replace an existing file.
        check: verify the file against torch before it takes its name.
        waveforms: speech clips (samples,) at 16,000 Hz to verify with; chirps in noise when None.
        image_size: height and width of a vision file's input in pixels; the model's own when None.

    Returns:
        path.

    Raises:
        FileExistsError: the file exists and overwrite is False.
        ValueError: unknown bit-width, an encoder that is not prepared, a weight that is NaN or infinite, or
            a file over protobuf's 2 GB.
        quant.NotCalibratedError: a layer whose activation range was never observed.
        VerificationError: the file departs from torch.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or overwrite")
    _check_finite(encoder)
    model = frozen_copy(encoder)
    if run != FULL_PRECISION:
        with at(model, run):  # checks that the model is prepared and calibrated
            pass
    layers = to_qdq(model, run)
    _check_size(model, run)
    proto = trace(model, image_size)
    store_four_bits(proto, (f"encoder.{name}.{WEIGHT}" for name, layer in layers.items() if layer.bits.weight <= 4))
    helper.set_model_props(proto, metadata(encoder, run))
    onnx.checker.check_model(proto)

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".onnx", dir=path.parent)
    os.close(handle)
    staging = Path(name)
    try:
        onnx.save(proto, staging)
        if check:
            result = verify(staging, encoder, run, waveforms)
            if not result.passed:
                raise VerificationError(f"{path} was not written: {result}")
        staging.chmod(0o644)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def _check_finite(encoder: Encoder) -> None:
    for name, value in encoder.state_dict().items():
        # Ranges are infinite until observed; `quant.at` has its own error for that.
        if not name.endswith(RANGE_BUFFERS) and not value.isfinite().all():
            raise ValueError(f"weight {name!r} is NaN or infinite: nothing worth exporting")


def _check_size(model: Encoder, run: BitWidth) -> None:
    size = sum(value.nbytes for value in model.state_dict().values())
    if size > LARGEST_FILE:
        raise ValueError(
            f"{model.name} at {run} takes {size / 1e9:.2f} GB, over the 2 GB of one ONNX file; fewer weight bits fit"
        )
