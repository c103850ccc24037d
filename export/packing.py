"""Weights of fewer than 8 bits in as many bits of the file; ONNX Runtime unpacks them once, when a session starts.

| bits | stored as | operators until int8 |
| --- | --- | --- |
| 8 | int8 | none |
| 4 | INT4 | Cast |
| 2, 3, 5, 6, 7 | one bit plane for each bit, in uint8 | shifts, ands, ors: `_unpacked` |

A DequantizeLinear could read INT4 itself, but ONNX Runtime then multiplies in float, 7 times slower. Where activations
are float anyway it does: that is what the runtime fuses to `MatMulNBits`.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.qdq import WEIGHT, QdqLayer


def pack_weights(proto: onnx.ModelProto, layers: Mapping[str, QdqLayer]) -> None:
    """Store the integers of these layers in as many bits as they have, in place.

    Args:
        proto: the graph; weights are int8 initializers `encoder.<name>.weight_integers`.
        layers: export forms by name.

    Raises:
        RuntimeError: a weight that the graph does not have.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for layer, form in layers.items():
        bits, name = form.bits.weight, weight_name(layer)
        if bits >= 8:
            continue
        if name not in stored:
            raise RuntimeError(f"the exporter lost the integers of {name}")
        integers = numpy_helper.to_array(stored[name])
        if bits == 4 or (bits < 4 and integers.size % 8):
            typed = name if not form.in_use else f"{name}.int4"
            raw = pack_four_bits(integers).tobytes()
            stored[name].CopyFrom(helper.make_tensor(typed, TensorProto.INT4, integers.shape, raw, raw=True))
            if typed != name:
                nodes.append(helper.make_node("Cast", [typed], [name], f"{name}.cast", to=TensorProto.INT8))
        elif integers.size % 8 == 0:
            stored[name].CopyFrom(numpy_helper.from_array(bit_planes(integers, bits), f"{name}.planes"))
            proto.graph.initializer.append(numpy_helper.from_array(np.array(integers.shape), f"{name}.shape"))
            nodes += _unpacked(proto, name, bits)
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)


def weight_name(layer: str) -> str:
    """Name of a layer's int8 weight in the graph, stored or computed."""
    return f"encoder.{layer}.{WEIGHT}"


def stored_weight(stored: Mapping[str, TensorProto], layer: str) -> np.ndarray:
    """A layer's integers, int8, as `pack_weights` left them.

    Args:
        stored: initializers by name.
        layer: its name in the encoder.

    Raises:
        KeyError: the graph does not have them.
    """
    name = weight_name(layer)
    if f"{name}.planes" in stored:
        shape = numpy_helper.to_array(stored[f"{name}.shape"])
        return from_bit_planes(numpy_helper.to_array(stored[f"{name}.planes"])).reshape(shape)
    tensor = stored[f"{name}.int4" if f"{name}.int4" in stored else name]
    return numpy_helper.to_array(tensor).astype(np.int8)


def pack_four_bits(integers: np.ndarray) -> np.ndarray:
    """Two integers a byte, the first in the low half (ONNX TensorProto.INT4).

    Args:
        integers: any shape, from -8 to 7.

    Returns:
        uint8, shape (ceil(size / 2),).
    """
    flat = integers.astype(np.int8).flatten() & 0xF
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).astype(np.uint8)
    packed: np.ndarray = flat[0::2] | (flat[1::2] << 4)
    return packed


def bit_planes(integers: np.ndarray, bits: int) -> np.ndarray:
    """Bit k of every integer plus 2^(bits - 1) in plane k, eight integers a byte, the first in the lowest bit.

    Args:
        integers: any shape, from -2^(bits - 1) to 2^(bits - 1) - 1; a multiple of 8 of them.
        bits: 1 to 7.

    Returns:
        uint8, shape (bits, size / 8, 1).
    """
    lifted = (integers.flatten() + 2 ** (bits - 1)).astype(np.uint8)
    planes = [np.packbits((lifted >> bit) & 1, bitorder="little") for bit in range(bits)]
    return np.stack(planes)[..., None]


def from_bit_planes(planes: np.ndarray) -> np.ndarray:
    """The way back: (bits, size / 8, 1) to int8, shape (size,)."""
    ones = np.unpackbits(planes[..., 0], axis=1, bitorder="little")
    lifted = (ones << np.arange(len(planes), dtype=np.uint8)[:, None]).sum(axis=0)
    return (lifted.astype(np.int16) - 2 ** (len(planes) - 1)).astype(np.int8)


def _unpacked(proto: onnx.ModelProto, name: str, bits: int) -> list[onnx.NodeProto]:
    """`from_bit_planes` in operators of opset 21."""
    positions = np.arange(8, dtype=np.uint8)
    constants = {
        "bits.positions": positions,  # of the integers in a byte
        "bits.one": np.array(1, np.uint8),
        f"bits.places_{bits}": positions[:bits].reshape(-1, 1, 1),
        f"bits.half_{bits}": np.array(2 ** (bits - 1), np.int8),
    }
    known = {tensor.name for tensor in proto.graph.initializer}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items() if k not in known)
    step = [f"{name}.{what}" for what in ("shifted", "ones", "placed")]
    planes = [f"{name}.plane_{bit}" for bit in range(bits)]
    sums = [planes[0], *(f"{name}.sum_{bit}" for bit in range(1, bits))]
    make = helper.make_node
    return [
        make("BitShift", [f"{name}.planes", "bits.positions"], [step[0]], direction="RIGHT"),
        make("BitwiseAnd", [step[0], "bits.one"], [step[1]]),
        make("BitShift", [step[1], f"bits.places_{bits}"], [step[2]], direction="LEFT"),
        make("Split", [step[2]], planes, axis=0, num_outputs=bits),
        *(make("BitwiseOr", [sums[bit - 1], planes[bit]], [sums[bit]]) for bit in range(1, bits)),
        make("Reshape", [sums[-1], f"{name}.shape"], [f"{name}.lifted"]),
        make("Cast", [f"{name}.lifted"], [f"{name}.lifted_int8"], to=TensorProto.INT8),
        make("Sub", [f"{name}.lifted_int8", f"bits.half_{bits}"], [name]),
    ]


def halve_floats(proto: onnx.ModelProto) -> None:
    """Store the encoder's float weights as float16, in place; ONNX Runtime widens them when a session starts.

    Vectors (biases, normalizations), front end and head stay as they are. Values beyond float16's range are clipped.
    """
    limit = float(np.finfo(np.float16).max)
    for tensor in proto.graph.initializer:
        name = tensor.name
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or name.startswith(("front_end.", "head.")):
            continue
        halves = numpy_helper.to_array(tensor).clip(-limit, limit).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.float16"))
        cast = helper.make_node("Cast", [f"{name}.float16"], [name], f"{name}.cast", to=TensorProto.FLOAT)
        proto.graph.node.insert(0, cast)
