"""Write an encoder at a bit-width as an ONNX file: whole and verified, or not at all."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import onnx
from onnx import helper
from torch import Tensor

from encoders import Encoder, Head, Tokenizer
from encoders.storage.files import move_pair, staged_pair, write_json
from encoders.storage.folder import check_finite_weights
from encoders.storage.ownership import ONNX, ONNX_DATA, REPORT, refuse_foreign
from export import external_data
from export.check.accuracy import Labelled
from export.check.verdict import Verification
from export.check.verify import verify
from export.graph.front_end import ExportedFrontEnd, shrink_tables
from export.graph.groups import widen_groups
from export.graph.head import ExportedHead
from export.graph.packing import give_zero_points, pack_weights
from export.graph.pipeline import Pipeline
from export.graph.qdq import QdqLayer, to_qdq
from export.graph.signature import SpeechInput, example_inputs, filled_frames, frozen_copy, input_form, signature
from export.graph.stored_floats import halve_floats, shrink_positions
from export.graph.tokenizer import ExportedTokenizer
from export.graph.trace import trace
from export.graph.unused import drop_unused
from export.metadata import OPSET, VerificationError, metadata
from export.onnx_file import Weights, rename, save
from export.onnx_file import check as check_graph
from export.runtime.runtimes import DEFAULT, Runtime
from quant import FULL_PRECISION, BitWidth, at, parse_bit_width
from quant.activation import RANGE_BUFFERS
from quant.bits import FLOAT_BITS

log = logging.getLogger(__name__)

EncoderType = TypeVar("EncoderType", bound=Encoder)


def to_onnx(
    encoder: Encoder,
    path: str | Path,
    *,
    bit_width: str | BitWidth = "fp",
    float16: bool = False,
    input: SpeechInput | None = None,
    head: Head | None = None,
    tokenizer: Tokenizer | None = None,
    image_size: int | tuple[int, int] | None = None,
    clips: Sequence[Tensor] | None = None,
    labelled: Labelled | None = None,
    check: bool = True,
    overwrite: bool = False,
    opset: int = OPSET,
    runtime: Runtime = DEFAULT,
) -> Verification | None:
    """Export an encoder at a bit-width; integers and scales are those of `quant`.

    Speech: inputs `log_mel` (batch, n_mels, frames) and `lengths` (batch,) int64 in frames, or `waveform`
    (batch, samples) at 16,000 Hz and `lengths` in samples; outputs `features` (batch, frames', feature_dim)
    and `feature_lengths` (batch,) int64. Vision: input `images`, normalized pixels (batch, channels, height,
    width); output `features` (batch, feature_dim). A head adds `logits` (classification: (batch, classes); ctc:
    (batch, frames', 1 + tokens)) or `values` (regression: (batch, targets)). A tokenizer adds `linguistic_tokens` and
    `semantic_tokens` (batch, tokens), int64 with -1 beyond a clip's length, and `linguistic_lengths` and
    `semantic_lengths` (batch,). Batch and time are dynamic.
    Weights take as many bits of the file as they have, learned positions 12 where weights are quantized. ONNX Runtime
    unpacks them when a session starts, weights to int8, and multiplies at the speed of int8.
    A file that would be over protobuf's 2 GB has its weights in a second one beside it, `<name>.onnx.data`.

    Args:
        encoder: prepared and calibrated unless bit_width is `fp`; left untouched.
        path: the file to write; it appears whole and verified, or not at all.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        float16: store float weights in 16 bits; they are computed with in float32 all the same.
        input: speech: `log_mel`, or `waveform` with the front end in the file; None: log_mel if the encoder takes it.
        head: stays in float.
        tokenizer: of a speech encoder; stays in float.
        image_size: height and width of a vision file's input in pixels, one number or two; the model's own when None.
        clips: to verify with, (samples,) at 16,000 Hz or images (channels, height, width) in [0, 1]; real speech that
            comes with the package, or generated images, when None.
        labelled: test data of the head: for 99.5 % of the clips it must say in the file what it says in torch.
        check: verify the file against torch before it takes its name; the report goes beside it, to
            `<name>.verification.json`. A file that fails keeps the name `<name>.failed.onnx`.
        overwrite: replace an existing file.
        opset: 21 or newer.
        runtime: that the file is to be fastest in. It is a standard file that every runtime computes; only convolutions
            of images have another form for OpenVINO, with the same integers, which ONNX Runtime is slow at.

    Returns:
        what the verification found; None where there was none.

    Raises:
        FileExistsError: the file exists and overwrite is False, or it, its weights or its report are not ours.
        ValueError: unknown bit-width or input, an encoder that is not prepared, a weight that is NaN or infinite, a
            layer or operation without an ONNX form, an opset that is too old, or a tokenizer of another
            encoder.
        quant.NotCalibratedError: a layer whose activation range was never observed.
        VerificationError: the file departs from torch.

    Example:
        >>> import encoders, export
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> export.to_onnx(encoder, "encoder.onnx", overwrite=True).passed
        True
    """
    path, run = Path(path), parse_bit_width(bit_width)
    report, failed = path.with_suffix(".verification.json"), path.with_suffix(".failed.onnx")
    failed_report = failed.with_suffix(".verification.json")
    refuse_foreign(path, ONNX, overwrite)
    for other, kind in ((report, REPORT), (failed, ONNX), (failed_report, REPORT)):
        refuse_foreign(other, kind)
    for data in (external_data.beside(path), external_data.beside(failed)):
        refuse_foreign(data, ONNX_DATA)
    weights: Weights = {}
    form = input_form(encoder, input)
    proto = _build(encoder, run, form, head, image_size, opset, tokenizer, runtime, weights)
    if float16:
        halve_floats(proto, weights)
    with staged_pair(path, external_data.beside(path)) as staging:
        save(proto, staging, weights)
        del proto
        if not check:
            report.unlink(missing_ok=True)  # of an earlier file
            return None
        result = verify(staging, encoder, run, clips, head, labelled, tokenizer)
        result.file = str(path)
        log.info("%s: %s", path, result)
        if not result.passed:
            result.file = str(failed)
            rename(staging, external_data.beside(failed).name)
            move_pair(staging, failed, external_data.beside(staging), external_data.beside(failed))
            write_json(result.to_dict(), failed_report)
            raise VerificationError(
                f"{path} was not written, {failed.name} departs from torch: {result.reasons}; "
                f"{failed_report.name} says where, and ssql verify --file looks at it with recordings of yours (--data)"
            )
        write_json(result.to_dict(), report)
        return result


def _build(
    encoder: Encoder, run: BitWidth, form: str, head: Head | None, image_size: int | tuple[int, int] | None, opset: int,
    tokenizer: Tokenizer | None, runtime: Runtime, weights: Weights,
) -> onnx.ModelProto:  # fmt: skip
    if opset < OPSET:
        raise ValueError(f"opset {opset} is too old: quantized graphs need {OPSET} or newer (INT4 weights)")
    model, layers = export_form(encoder, run)
    if head is not None:
        check_finite_weights(head, prefix="head.")
    if tokenizer is not None:
        tokenizer.check_encoder(encoder)
        check_finite_weights(tokenizer, prefix="tokenizer.")
    front_end = ExportedFrontEnd(model.front_end) if form == "waveform" else None
    exported_head = None if head is None else ExportedHead(frozen_copy(head))
    exported_tokenizer = None if tokenizer is None else ExportedTokenizer(frozen_copy(tokenizer))
    pipeline = Pipeline(model, front_end, exported_head, exported_tokenizer)
    names = signature(form, head, tokenizer, filled_frames(encoder))
    proto = trace(pipeline, names, example_inputs(model, form, image_size), opset, runtime == "onnxruntime", weights)
    shrink_tables(proto)
    if run.weight != FLOAT_BITS:
        shrink_positions(proto, weights)
    return finished(proto, layers, metadata(encoder, run, form, head, tokenizer), weights)


def finished(
    proto: onnx.ModelProto, layers: Mapping[str, QdqLayer], about: dict[str, str], weights: Weights
) -> onnx.ModelProto:
    """A traced graph, in place, with packed weights, without what nothing uses, with what it says about itself."""
    pack_weights(proto, layers, weights)
    widen_groups(proto)
    give_zero_points(proto)
    drop_unused(proto)
    helper.set_model_props(proto, about)
    check_graph(proto, weights)
    return proto


def export_form(encoder: EncoderType, run: BitWidth) -> tuple[EncoderType, dict[str, QdqLayer]]:
    """A copy of an encoder with everything quantized in its export form, and those with a weight by name.

    Raises:
        ValueError: a weight that is NaN or infinite, or an encoder that is not prepared.
        quant.NotCalibratedError: a layer whose activation range was never observed.
    """
    # Ranges are infinite until observed; `quant.at` has its own error for that.
    check_finite_weights(encoder, RANGE_BUFFERS)
    model = frozen_copy(encoder)
    if run != FULL_PRECISION:
        with at(model, run):  # checks that the model is prepared and calibrated
            pass
    return model, to_qdq(model, run)
