"""Positions in 12 bits and floats in 16 of a file; the runtime widens both once, when a session starts."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.onnx_file import Weights, array_of, store
from quant.bits import BitWidth
from quant.grid.affine import SMALLEST_SCALE
from quant.layers import QuantLayer

FULL_FLOATS = ("front_end.", "head.", "tokenizer.")
HALF = ".float16"
POSITIONS = "encoder.positional_embedding.weight"
HIGH = f"{POSITIONS}.high"


def halve_floats(proto: onnx.ModelProto, weights: Weights | None = None) -> None:
    """Store the encoder's float weights as float16, in place; ONNX Runtime widens them when a session starts.

    Vectors (biases, normalizations), front end, head and tokenizer stay as they are. Values beyond float16's range are
    clipped.

    Args:
        proto: the graph.
        weights: those that are not in it; they are halved as well.
    """
    weights = {} if weights is None else weights
    for tensor in proto.graph.initializer:
        name = tensor.name
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or name.startswith(FULL_FLOATS):
            continue
        store(tensor, _halves(array_of(tensor, weights)), f"{name}{HALF}", weights)
        cast = helper.make_node("Cast", [f"{name}{HALF}"], [name], f"{name}.cast", to=TensorProto.FLOAT)
        proto.graph.node.insert(0, cast)


def shrink_positions(proto: onnx.ModelProto, weights: Weights | None = None) -> None:
    """Store learned positions in 12 bits with a scale for each channel, in place: 8 high bits, and 4 low ones.

    In float they are an eighth of Whisper base's int8 file. In 8 bits they would change its features by 0.0002 of their
    variance; in 12 they change them by less than 0.000001.

    Args:
        proto: the graph.
        weights: those that are not in it.
    """
    weights = {} if weights is None else weights
    tensor = next((tensor for tensor in proto.graph.initializer if tensor.name == POSITIONS), None)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return
    integers, scale = _in_12_bits(array_of(tensor, weights))
    high = (integers + 8) >> 4
    store(tensor, high.astype(np.int8), HIGH, weights)
    low = (integers - (high << 4)).astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    sixteen = numpy_helper.from_array(np.array(16, np.float32), f"{POSITIONS}.sixteen")
    more = (low, f"{POSITIONS}.low"), (scale, f"{POSITIONS}.scale")
    proto.graph.initializer.extend([sixteen, *(numpy_helper.from_array(values, name) for values, name in more)])
    nodes = (
        ("Cast", [HIGH], "high_float"), ("Mul", ["high_float", "sixteen"], "shifted"),
        ("Cast", ["low"], "low_int8"), ("Cast", ["low_int8"], "low_float"),
        ("Add", ["shifted", "low_float"], "integers"), ("Mul", ["integers", "scale"], ""),
    )  # fmt: skip
    for place, (kind, inputs, output) in enumerate(nodes):
        names = [name if name == HIGH else f"{POSITIONS}.{name}" for name in inputs]
        node = helper.make_node(kind, names, [f"{POSITIONS}.{output}" if output else POSITIONS])
        if kind == "Cast":
            to = TensorProto.INT8 if output == "low_int8" else TensorProto.FLOAT
            node.attribute.append(helper.make_attribute("to", to))
        proto.graph.node.insert(place, node)


def round_as_stored(proto: onnx.ModelProto, encoder: nn.Module, run: BitWidth) -> bool:
    """Round those weights of an encoder, which get new tensors, that a file stores in fewer bits: to compare it with.

    Args:
        proto: of the file.
        encoder: the copy that changes.
        run: the file's bit-width: a smoothed layer's weight is stored times its spread.

    Returns:
        whether the file stores any as float16. Where the exporter folded a normalization in, the file rounded another
        number.
    """
    if any(tensor.name == HIGH for tensor in proto.graph.initializer):
        positions = encoder.get_submodule("positional_embedding")
        integers, scale = _in_12_bits(positions.get_parameter("weight").detach().numpy())
        positions.weight = nn.Parameter(torch.from_numpy(integers.astype(np.float32) * scale), False)
    halved = {tensor.name for tensor in proto.graph.initializer if tensor.name.endswith(HALF)}
    for name, module in encoder.named_modules():
        for values in (module._parameters, module._buffers):
            for leaf, value in values.items():
                full = ".".join(filter(None, ("encoder", name, leaf)))
                if value is not None and f"{full}{HALF}" in halved:
                    spread = module.spread_at(run) if isinstance(module, QuantLayer) and leaf == "weight" else None
                    stored = value.detach() if spread is None else value.detach() * spread
                    rounded = torch.from_numpy(_halves(stored.numpy()).astype(np.float32))
                    rounded = rounded if spread is None else rounded / spread
                    values[leaf] = nn.Parameter(rounded, False) if isinstance(value, nn.Parameter) else rounded
    return bool(halved)


def _halves(values: np.ndarray) -> np.ndarray:
    limit = float(np.finfo(np.float16).max)
    halves: np.ndarray = values.clip(-limit, limit).astype(np.float16)
    return halves


def _in_12_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers, int16, of the shape of values (frames, channels), and a scale for each channel, float32 (channels,)."""
    scale = np.maximum(np.abs(values).max(axis=0), np.float32(SMALLEST_SCALE)) / np.float32(2039)
    integers: np.ndarray = (values / scale).round().astype(np.int16)
    return integers, scale
