"""A streaming encoder as an ONNX file: one chunk and the state in, features and the next state out."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from encoders import StreamingTransformer
from encoders.storage.files import staged_pair
from encoders.storage.ownership import ONNX, ONNX_DATA, refuse_foreign
from export import external_data
from export.check.stream import verify_stream
from export.check.verdict import Verification
from export.graph.signature import Signature
from export.graph.step import STATE, Step
from export.graph.trace import trace
from export.metadata import OPSET, VerificationError, metadata
from export.onnx_file import Weights, save
from export.write import export_form, finished
from quant import BitWidth, parse_bit_width

FORM = "stream"
log = logging.getLogger(__name__)


def stream_to_onnx(
    encoder: StreamingTransformer,
    path: str | Path,
    *,
    bit_width: str | BitWidth = "fp",
    clips: Sequence[Tensor] | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Verification | None:
    """Export one step of a stream at a bit-width; integers and scales are those of `quant`.

    Inputs: `log_mel` (batch, n_mels, `chunk_mels`), `lengths` (batch,) int64, fewer than the chunk's frames only at a
    stream's end, and the state `mel`, `stem`, `keys`, `values`, `past`, with an adaptor `adaptor`: zeros at a stream's
    start. Outputs: `features` (batch, frames', feature_dim), `feature_lengths` (batch,), and the state for the next
    step under the same names after `next_`. All shapes but the batch are fixed: memory does not grow.

    Args:
        encoder: prepared and calibrated unless bit_width is `fp`; left untouched.
        path: the file to write; it appears whole and verified, or not at all.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        clips: speech (samples,) at 16,000 Hz to verify with; a recording that comes with the package when None.
        check: verify the file, step by step, against torch on whole clips.
        overwrite: replace an existing file.

    Returns:
        what the verification found; None where there was none.

    Raises:
        FileExistsError: the file exists and overwrite is False, or it is not one of ours.
        ValueError: unknown bit-width, an encoder that is not prepared, or a weight that is NaN or infinite.
        quant.NotCalibratedError: a layer whose activation range was never observed.
        VerificationError: the file departs from torch.

    Example:
        >>> import encoders, export
        >>> encoder = encoders.StreamingTransformer(width=16, depth=1, heads=2, chunk=8, left_chunks=1)
        >>> export.stream_to_onnx(encoder, "stream.onnx", overwrite=True).passed
        True
    """
    path, run = Path(path), parse_bit_width(bit_width)
    refuse_foreign(path, ONNX, overwrite)
    refuse_foreign(external_data.beside(path), ONNX_DATA)
    weights: Weights = {}
    proto = _build(encoder, run, weights)
    with staged_pair(path, external_data.beside(path)) as staging:
        save(proto, staging, weights)
        if not check:
            return None
        result = verify_stream(staging, encoder, run, clips)
        result.file = str(path)
        log.info("%s: %s", path, result)
        if not result.passed:
            raise VerificationError(f"{path} was not written, it does not agree with torch: {result.reasons}")
        return result


def _build(encoder: StreamingTransformer, run: BitWidth, weights: Weights) -> onnx.ModelProto:
    model, layers = export_form(encoder, run)
    state = {name: axes for name, axes in STATE.items() if name != "adaptor" or model.adaptor is not None}
    names = Signature(
        {"log_mel": ("batch", None, None), "lengths": ("batch",)} | state,
        {"features": ("batch", None, None), "feature_lengths": ("batch",)}
        | {f"next_{name}": axes for name, axes in state.items()},
    )
    log_mel = torch.randn(2, model.arguments["n_mels"], model.chunk_mels)
    lengths = torch.tensor([model.chunk_mels, model.chunk_mels - 1])
    examples = (log_mel, lengths, *model.start(2)[: len(state)])
    proto = trace(Step(model), names, examples, OPSET, weights=weights)
    about = metadata(encoder, run, FORM) | {"chunk_mels": str(model.chunk_mels), "state": json.dumps(list(state))}
    return finished(proto, layers, about, weights)
