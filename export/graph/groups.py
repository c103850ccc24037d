"""Weights in groups beside quantized inputs: turned back to float once, when a session starts."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def widen_groups(proto: onnx.ModelProto) -> None:
    """Replace each DequantizeLinear of int8 in groups whose MatMul takes a quantized input, in place.

    Cast, Reshape, Mul and Reshape give the same numbers, and both runtimes compute them once. ONNX Runtime 1.32
    (QDQSelectorActionTransformer) would make such a product a MatMulIntegerToFloat, which knows no scales of groups,
    and fail as it runs. INT4 is never taken for that; it stays, and takes less memory.

    Args:
        proto: the graph, its weights packed.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    dequantized = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in proto.graph.node if node.op_type == "MatMul" and node.input[0] in dequantized]
    weights = {node.input[1] for node in products}
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in weights and _is_in_groups(node, stored):
            nodes += _widened(proto, node, *stored[node.input[1]].dims)
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _is_in_groups(node: onnx.NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Whether a DequantizeLinear has a scale for each group, and takes int8."""
    packed = node.input[0] in stored and stored[node.input[0]].data_type == TensorProto.INT4
    return not packed and any(attribute.name == "block_size" for attribute in node.attribute)


def _widened(proto: onnx.ModelProto, node: onnx.NodeProto, groups: int, channels: int) -> list[onnx.NodeProto]:
    """The operators in the place of a DequantizeLinear; its scale has shape (groups, channels)."""
    integers, scale = node.input[:2]
    floats, name = f"{integers}.float", f"{integers}.in_groups"
    numbers = {f"{name}.shape": [groups, -1, channels], f"{name}.axis": [1], f"{floats}.shape": [-1, channels]}
    for other, values in numbers.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values), other))
    return [
        helper.make_node("Cast", [integers], [floats], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [floats, f"{name}.shape"], [name]),
        helper.make_node("Unsqueeze", [scale, f"{name}.axis"], [f"{name}.scale"]),
        helper.make_node("Mul", [name, f"{name}.scale"], [f"{name}.scaled"]),
        helper.make_node("Reshape", [f"{name}.scaled", f"{floats}.shape"], [node.output[0]]),
    ]
