"""Weights of fewer than 8 bits in as many bits of the file; ONNX Runtime unpacks them once, when a session starts.

| bits | stored as | operators until int8 |
| --- | --- | --- |
| 8 | int8 | none |
| 4 | INT4 | Cast |
| 2, 3, 5, 6, 7 | fields of 4, 2 and 1 bits, as many to a byte as fit: `FIELDS` | Gather from a table of all bytes |

A DequantizeLinear could read INT4 itself, but ONNX Runtime then multiplies in float, 7 times slower. Where activations
are float anyway it does: that is what the runtime fuses to `MatMulNBits`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.qdq import WEIGHT, QdqLayer
from export.onnx_file import INT4, Weights, add, array_of, store, stored_array

# Widths of the fields that make up an integer, its lowest bits first.
FIELDS = {2: (2,), 3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


def pack_weights(proto: onnx.ModelProto, layers: Mapping[str, QdqLayer], weights: Weights | None = None) -> None:
    """Store the integers of these layers in as many bits as they have, in place.

    Args:
        proto: the graph; weights are int8 initializers `encoder.<name>.weight_integers`.
        layers: export forms by name.
        weights: those that are not in the graph; they are packed as well.

    Raises:
        RuntimeError: a weight that the graph does not have.
    """
    weights = {} if weights is None else weights
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for layer, form in layers.items():
        bits, name = form.bits.weight, weight_name(layer)
        if bits >= 8:
            continue
        if name not in stored:
            raise RuntimeError(f"the exporter lost the integers of {name}")
        integers, apart = array_of(stored[name], weights), name in weights
        if bits == 4 or (bits < 4 and integers.size % 8):
            typed = name if not form.in_integers else f"{name}.int4"
            store(stored[name], integers.astype(INT4), typed, weights)
            if typed != name:
                nodes.append(helper.make_node("Cast", [typed], [name], f"{name}.cast", to=TensorProto.INT8))
        elif integers.size % 8 == 0:
            fields = pack_fields(integers, bits)
            store(stored[name], fields[0], f"{name}.field_0", weights)
            for place, field in enumerate(fields[1:], start=1):
                add(proto, field, f"{name}.field_{place}", weights, apart)
            proto.graph.initializer.append(numpy_helper.from_array(np.array(integers.shape), f"{name}.shape"))
            nodes += _unpacked(proto, name, bits)
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)


def give_zero_points(proto: onnx.ModelProto) -> None:
    """Give int8 weights of convolutions, and of float inputs, a zero point for each channel, in place; all are zero.

    ONNX leaves it out where it is zero. But in sessions with exact sums (`session.x64quantprecision`, processors
    without VNNI) ONNX Runtime shifts weights to uint8, makes up one zero point for all channels, and then refuses to
    run a DequantizeLinear that has a scale for each.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    dequantized = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    weights = {
        node.input[1]
        for node in proto.graph.node
        if node.op_type == "Conv" or (node.op_type == "MatMul" and node.input[0] not in dequantized)
    }
    for node in proto.graph.node:
        integers = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" and len(node.input) == 2 else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
        if integers is None or axis is None or integers.data_type != TensorProto.INT8 or not weights & {*node.output}:
            continue
        name = f"{node.input[0]}.zero_point"
        in_groups = any(attribute.name == "block_size" for attribute in node.attribute)
        shape = tuple(stored[node.input[1]].dims) if in_groups else integers.dims[axis]
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.int8), name))
        node.input.append(name)


def weight_name(layer: str) -> str:
    """Name of a layer's int8 weight in the graph, stored or computed."""
    return f"encoder.{layer}.{WEIGHT}"


def stored_weight(stored: Mapping[str, TensorProto], layer: str, bits: int, folder: str = "") -> np.ndarray:
    """A layer's integers, int8, as `pack_weights` left them.

    Args:
        stored: initializers by name.
        layer: its name in the encoder.
        bits: of the integers.
        folder: of the file, where its large weights are not in its message.

    Raises:
        KeyError: the graph does not have them.
    """
    name = weight_name(layer)
    if f"{name}.shape" in stored:
        fields = [stored_array(stored[f"{name}.field_{place}"], folder) for place in range(len(FIELDS[bits]))]
        return unpack_fields(fields, bits).reshape(stored_array(stored[f"{name}.shape"]))
    tensor = stored[f"{name}.int4" if f"{name}.int4" in stored else name]
    return stored_array(tensor, folder).astype(np.int8)


def pack_fields(integers: np.ndarray, bits: int) -> list[np.ndarray]:
    """The fields of every integer plus 2^(bits - 1); in each array 8 / width to a byte, the first in the lowest bits.

    Args:
        integers: any shape, from -2^(bits - 1) to 2^(bits - 1) - 1; a multiple of 8 of them.
        bits: a key of `FIELDS`.

    Returns:
        uint8, shape (size * width / 8,), for each width.
    """
    lifted = (integers.flatten() + 2 ** (bits - 1)).astype(np.uint8)
    fields = []
    for width in FIELDS[bits]:
        parts = (lifted & (2**width - 1)).reshape(-1, 8 // width)
        fields.append((parts << _places(width)).sum(axis=1, dtype=np.uint8))
        lifted >>= width
    return fields


def unpack_fields(fields: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """The way back: int8, shape (size,)."""
    parts = [table[field].flatten() for table, field in zip(_tables(bits), fields, strict=True)]
    return np.stack(parts).sum(axis=0, dtype=np.int8)


def _tables(bits: int) -> list[np.ndarray]:
    """What each byte of a field stands for, int8, shape (256, 8 / width); their sum is the integer."""
    tables, shift = [], 0
    for width in FIELDS[bits]:
        parts = (np.arange(256)[:, None] >> _places(width)) & (2**width - 1)
        tables.append((parts << shift).astype(np.int16))
        shift += width
    tables[-1] -= 2 ** (bits - 1)
    return [table.astype(np.int8) for table in tables]


def _places(width: int) -> np.ndarray:
    """Where the fields of a byte begin, in bits."""
    return np.arange(0, 8, width, dtype=np.uint8)


def _unpacked(proto: onnx.ModelProto, name: str, bits: int) -> list[onnx.NodeProto]:
    """`unpack_fields` in operators."""
    known = {tensor.name for tensor in proto.graph.initializer}
    nodes, parts = [], []
    for place, table in enumerate(_tables(bits)):
        field, table_name = f"{name}.field_{place}", f"bits_{bits}.table_{place}"
        if table_name not in known:
            proto.graph.initializer.append(numpy_helper.from_array(table, table_name))
        part = f"{name}.part_{place}"
        nodes += [
            helper.make_node("Cast", [field], [f"{field}.index"], to=TensorProto.INT32),
            helper.make_node("Gather", [table_name, f"{field}.index"], [f"{field}.looked_up"]),
            helper.make_node("Reshape", [f"{field}.looked_up", f"{name}.shape"], [part]),
        ]
        parts.append(part)
    for place, part in enumerate(parts[1:], start=1):
        nodes.append(helper.make_node("Add", [parts[0], part], [f"{name}.sum_{place}"]))
        parts[0] = f"{name}.sum_{place}"
    nodes[-1].output[0] = name
    return nodes
