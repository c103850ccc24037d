"""Quantized convolutions in the form that ONNX Runtime runs fastest."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.nodes import array_of, producer_of, replace_value
from export.graph.transposes import FUNCTIONS

LARGEST_BIAS = 2**30


def lower_convolutions(graph: ir.Graph, image_windows: bool = True) -> None:
    """Give every convolution with quantized weights its fastest form, in place.

    | input | output | form |
    | --- | --- | --- |
    | quantized | quantized next, a ReLU between at most | as it is: the runtime fuses it to QLinearConv |
    | quantized | float: a GELU, a residual sum | Gather of windows, MatMul of integers: but see `image_windows` |
    | float | the next convolution, quantized, of one dimension | the same windows, MatMul in float |
    | float, or weights in groups | any other | weights turned back to float once, when a session starts |

    The runtime has no other integer convolution that is fast: where no QuantizeLinear follows it computes in float,
    from weights that it dequantizes at every run. Integers and scales are the same in all forms; a MatMul's weights
    are stored as (kernel * in, out). Transposes between two convolutions cancel: `join_transposes`. A float product is
    as fast in ONNX Runtime as the convolution; in OpenVINO its result needs no other layout before it is quantized,
    which costs more than the convolution. Convolutions in groups stay as they are.

    OpenVINO has integer convolutions that give floats: of images they take a third of the time of windows (ResNet-18).
    ONNX Runtime computes the same graph in float, in three times the time of windows.

    Args:
        graph: as traced.
        image_windows: make windows of images, as of sequences: for ONNX Runtime, not for OpenVINO.
    """
    for node in list(graph):
        if node.op_type != "Conv":
            continue
        values, weight = (producer_of(node, place, "DequantizeLinear") for place in (0, 1))
        reshaped = producer_of(node, 1, "Reshape")  # of a kernel in groups
        if values is None and weight is not None and _is_plain(node, weight) and _feeds_windows(node, weight):
            _multiply(graph, node, None, weight)
        elif reshaped is not None or (values is None and weight is not None):
            _dequantize_at_start(graph, node, weight, reshaped)
        elif values is None or weight is None or not _is_plain(node, weight) or _fuses(node, values, weight):
            continue
        elif image_windows or array_of(weight.inputs[0]).ndim != 4:
            _multiply(graph, node, values, weight)
    graph.sort()


def _dequantize_at_start(graph: ir.Graph, node: ir.Node, weight: ir.Node | None, reshaped: ir.Node | None) -> None:
    """The runtime folds a Cast and a Mul of constants, but not a DequantizeLinear."""
    dequantize = weight or producer_of(reshaped, 0, "DequantizeLinear")  # type: ignore[arg-type]
    if dequantize is None:
        return
    tape = ir.tape.Tape(graph)
    integers, scale = dequantize.inputs[:2]
    assert integers is not None
    shape = array_of(integers).shape if reshaped is None else array_of(reshaped.inputs[1])

    def reshape(value: ir.Value | None, name: str, *sizes: int) -> ir.Value:
        target = ir.tensor(np.array(sizes, np.int64), name=f"{integers.name}.{name}")
        return tape.op("Reshape", [value, tape.initializer(target)])

    rows = reshape(tape.op("Cast", [integers], {"to": ir.DataType.FLOAT}), "in_rows", array_of(scale).size, -1)
    scaled = tape.op("Mul", [rows, reshape(scale, "by_row", -1, 1)])
    node.replace_input_with(1, reshape(scaled, "kernel", *shape))
    for unused in filter(None, (reshaped, dequantize)):
        if not unused.outputs[0].uses():
            graph.remove(unused, safe=True)


def _feeds_windows(node: ir.Node, weight: ir.Node) -> bool:
    """Whether functions of single numbers lead from a convolution of one dimension to the next: Transposes cancel.

    Only of what the file is given: OpenVINO 2026.4 crashes where a Gather takes log-mels that the file makes.
    """
    values = node.inputs[0]
    if array_of(weight.inputs[0]).ndim != 3 or values is None or not values.is_graph_input():
        return False
    while True:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].idx != 0:
            return False
        node = uses[0].node
        if node.op_type == "Conv":
            return node.attributes.get_int("group", 1) == 1
        if node.op_type not in (*FUNCTIONS, "DequantizeLinear"):
            return False


def _is_plain(node: ir.Node, weight: ir.Node) -> bool:
    """Whether a convolution is a product of windows with a weight of its own."""
    return len(weight.outputs[0].uses()) == 1 and node.attributes.get_int("group", 1) == 1


def _fuses(node: ir.Node, values: ir.Node, weight: ir.Node) -> bool:
    """Whether the runtime makes a QLinearConv of it, and its bias fits the 32 bits that it gets there."""
    if len(node.inputs) > 2:
        step = np.abs(array_of(values.inputs[1]) * array_of(weight.inputs[1])).astype(np.float64)
        if (np.abs(array_of(node.inputs[2])) > LARGEST_BIAS * step).any():
            return False
    for _ in range(2):
        uses = list(node.outputs[0].uses())
        if len(uses) != 1:
            return False
        node = uses[0].node
        if node.op_type != "Relu":
            return node.op_type == "QuantizeLinear"
    return False


def _multiply(graph: ir.Graph, node: ir.Node, values: ir.Node | None, weight: ir.Node) -> None:
    tape = ir.tape.Tape(graph)
    stored = weight.inputs[0]
    kernel = array_of(stored)
    assert stored is not None
    rank = kernel.ndim
    matrix = kernel.transpose(*range(2, rank), 1, 0).reshape(-1, len(kernel))
    stored.const_value, stored.shape = ir.tensor(matrix, name=stored.name), ir.Shape(matrix.shape)
    channels_last = {"perm": [0, *range(2, rank), 1]}
    if values is None:
        last = tape.op("Transpose", [node.inputs[0]], channels_last)
        columns = _windows(tape, node, last, None, kernel.shape)
        # The runtime folds a Cast and a Mul of constants, but not a DequantizeLinear.
        floats = tape.op("Cast", [stored], {"to": ir.DataType.FLOAT})
        result = tape.op("MatMul", [columns, tape.op("Mul", [floats, weight.inputs[1]])])
    else:
        integers, scale, zero_point = values.inputs
        last = tape.op("Transpose", [integers], channels_last)
        columns = tape.op("DequantizeLinear", [_windows(tape, node, last, zero_point, kernel.shape), scale, zero_point])
        weight.outputs[0].shape = None
        weight.attributes["axis"] = ir.AttrInt64("axis", 1)
        result = tape.op("MatMul", [columns, weight.outputs[0]])
    if len(node.inputs) > 2:
        result = tape.op("Add", [result, node.inputs[2]])
    result = tape.op("Transpose", [result], {"perm": [0, rank - 1, *range(1, rank - 1)]})
    replace_value(node.outputs[0], result)
    graph.remove(node, safe=True)
    for unused in (values, weight):
        if unused is not None and not unused.outputs[0].uses():
            graph.remove(unused, safe=True)


def _windows(
    tape: ir.tape.Tape, node: ir.Node, integers: ir.Value, zero_point: ir.Value | None, kernel: tuple[int, ...]
) -> ir.Value:
    """What each window of a convolution sees: (batch, ..., in) to (batch, ..., kernel * in)."""
    channels, sizes = kernel[1], kernel[2:]
    spatial = len(sizes)

    def constant(name: str, numbers: Any) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{node.name}.{name}"))

    pads = node.attributes.get_ints("pads", [0] * 2 * spatial)
    strides = node.attributes.get_ints("strides", [1] * spatial)
    dilations = node.attributes.get_ints("dilations", [1] * spatial)
    if any(pads):
        both_ends = [0, *pads[:spatial], 0, 0, *pads[spatial:], 0]
        given = [] if zero_point is None else [zero_point]
        integers = tape.op("Pad", [integers, constant("pads", both_ends), *given])
    if set(sizes) == set(strides) == {1}:
        return integers
    index: ir.Value | None = None
    for axis, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True)):
        fixed = node.inputs[0].shape[axis + 2] if node.inputs[0].shape is not None else None  # type: ignore[union-attr]
        if isinstance(fixed, int):  # the runtime computes the rest once
            length = constant(f"length_{axis}", fixed + pads[axis] + pads[spatial + axis])
        else:
            length = tape.op("Squeeze", [tape.op("Shape", [integers], {"start": axis + 1, "end": axis + 2})])
        last = tape.op("Sub", [length, constant(f"span_{axis}", dilation * (size - 1))])
        starts = tape.op("Range", [constant(f"zero_{axis}", 0), last, constant(f"stride_{axis}", stride)])
        # Along this axis, of every window and of every place in it: an axis each, beside those of the other axes.
        others = constant(f"others_{axis}", [n for n in range(2 * spatial) if n != axis])
        window = np.expand_dims(dilation * np.arange(size), [n for n in range(2 * spatial) if n != spatial + axis])
        places = tape.op("Add", [tape.op("Unsqueeze", [starts, others]), constant(f"window_{axis}", window)])
        index = places if index is None else tape.op("Add", [tape.op("Mul", [index, length]), places])
    flat = tape.op("Reshape", [integers, constant("flat", [0, -1, channels])])
    windows = tape.op("Gather", [flat, index], {"axis": 1})
    return tape.op("Reshape", [windows, constant("window", [0] * (1 + spatial) + [channels * math.prod(sizes)])])
