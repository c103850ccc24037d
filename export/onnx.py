"""Write an encoder at a bit-width as an ONNX file."""

import copy
import importlib.metadata
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from encoders.encoder import Encoder
from encoders.log_mel import HOP, SAMPLE_RATE, WINDOW
from encoders.speech_transformer import SpeechTransformer
from export.qdq import WEIGHT, to_qdq
from quant import FULL_PRECISION, BitWidth, QuantLayer, at, parse_bit_width

FORMAT_VERSION = "1"
OPSET = 21


def to_onnx(encoder: Encoder, path: str | Path, bit_width: str | BitWidth = "fp", overwrite: bool = False) -> Path:
    """Export an encoder at a bit-width; integers and scales are those of `quant`.

    Speech: inputs `log_mel` (batch, n_mels, frames) and `lengths` (batch,) int64; outputs `features`
    (batch, frames', feature_dim) and `feature_lengths` (batch,). Vision: input `images`, normalized
    pixels (batch, channels, height, width); output `features` (batch, feature_dim). Batch and time are
    dynamic. Weights of 4 bits and fewer are INT4 initializers behind a Cast to INT8, which ONNX Runtime
    folds when a session starts: the size of 4 bits at the speed of 8.

    Args:
        encoder: prepared and calibrated unless bit_width is `fp`; left untouched.
        path: the file to write; it appears whole or not at all.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and overwrite is False.
        ValueError: unknown bit-width, an encoder that is not prepared, a weight that is NaN.
        quant.NotCalibratedError: a layer whose activation range was never observed.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or overwrite")
    for name, parameter in encoder.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"weight {name!r} is NaN or infinite: nothing worth exporting")
    metadata = _metadata(encoder, run)
    model = copy.deepcopy(encoder).cpu().eval()
    if run != FULL_PRECISION:
        with at(model, run):  # checks that the model is prepared and calibrated
            pass
    layers = to_qdq(model, run)
    proto = _exported(model)
    _store_four_bits(proto, {name for name, layer in layers.items() if layer.bits.weight <= 4})
    _strip(proto)
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    _write(proto, path)
    return path


def example_inputs(encoder: Encoder) -> tuple[Tensor, ...]:
    """Small inputs of the right shapes, batch 2, for tracing."""
    if isinstance(encoder, SpeechTransformer):
        return torch.randn(2, encoder.arguments["n_mels"], 64), torch.tensor([64, 48])
    images = encoder.arguments
    size = images["model_arguments"].get("img_size", 32 if images["small_images"] else 224)
    return (torch.randn(2, images["in_channels"], size, size),)


def _exported(model: Encoder) -> onnx.ModelProto:
    dynamic = torch.export.Dim.DYNAMIC
    speech = isinstance(model, SpeechTransformer)
    inputs = ["log_mel", "lengths"] if speech else ["images"]
    outputs = ["features", "feature_lengths"] if speech else ["features"]
    shapes: Sequence[Any] = ({0: dynamic, 2: dynamic}, {0: dynamic}) if speech else ({0: dynamic},)
    quiet = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in quiet]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated calls
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                _Features(model), example_inputs(model), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=inputs, output_names=outputs, dynamic_shapes={"inputs": tuple(shapes)},
                optimize=True,
            )  # fmt: skip
        finally:
            for logger, level in zip(quiet, levels, strict=True):
                logger.setLevel(level)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _name_axes(proto, speech)
    return proto


class _Features(nn.Module):
    """The encoder with positional tensors only, as the exporter wants it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Any:
        return self.encoder(*inputs)


def _name_axes(proto: onnx.ModelProto, speech: bool) -> None:
    names = {"log_mel": ("batch", None, "frames"), "lengths": ("batch",), "images": ("batch", None, None, None)}
    names |= {
        "features": ("batch", "feature_frames", None) if speech else ("batch", None),
        "feature_lengths": ("batch",),
    }
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if name:
                axis.dim_param = name


def _store_four_bits(proto: onnx.ModelProto, layers: set[str]) -> None:
    """Turn the int8 initializers of these layers into INT4 initializers, each behind a Cast to INT8."""
    wanted = {f"encoder.{name}.{WEIGHT}" for name in layers}
    casts = []
    for initializer in proto.graph.initializer:
        if initializer.name not in wanted:
            continue
        wanted.remove(initializer.name)
        integers, name = numpy_helper.to_array(initializer), initializer.name
        packed = _pack_four_bits(integers)
        initializer.CopyFrom(
            helper.make_tensor(f"{name}.int4", TensorProto.INT4, integers.shape, packed.tobytes(), raw=True)
        )
        casts.append(helper.make_node("Cast", [initializer.name], [name], name=f"{name}.cast", to=TensorProto.INT8))
    if wanted:
        raise RuntimeError(f"the exporter lost the integers of {', '.join(sorted(wanted))}")
    for cast in reversed(casts):
        proto.graph.node.insert(0, cast)


def _pack_four_bits(integers: np.ndarray) -> np.ndarray:
    """Two integers a byte, the first in the low half (ONNX TensorProto.INT4)."""
    flat = integers.astype(np.int8).flatten() & 0xF
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).astype(np.uint8)
    return flat[0::2] | (flat[1::2] << 4)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter adds for debugging: it can outweigh 4-bit weights."""
    proto.doc_string = ""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in [*proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _metadata(encoder: Encoder, run: BitWidth) -> dict[str, str]:
    layer = next((module for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    metadata = {
        "format_version": FORMAT_VERSION,
        "ssql_toolkit_version": importlib.metadata.version("ssql-toolkit"),
        "encoder": encoder.name,
        "arguments": json.dumps(encoder.arguments),
        "bit_width": str(run),
        "policy": json.dumps(layer.mode.policy.to_dict() if layer else None),
        "feature_dim": str(encoder.feature_dim),
    }
    if isinstance(encoder, SpeechTransformer):
        metadata |= {
            "sample_rate_hz": str(SAMPLE_RATE),
            "mel_window_samples": str(WINDOW),
            "mel_hop_samples": str(HOP),
            "n_mels": str(encoder.arguments["n_mels"]),
            "log_mel": "(log10(max(slaney_mel(|stft|^2), 1e-10)) + 4) / 4, zero-padded edges, last frame dropped",
            "frame_rate_hz": str(encoder.frame_rate),
        }
    return metadata


def _write(proto: onnx.ModelProto, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        onnx.save(proto, staging)
        os.chmod(staging, 0o644)
        os.replace(staging, path)
    finally:
        Path(staging).unlink(missing_ok=True)
