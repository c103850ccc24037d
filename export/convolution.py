"""Quantized convolutions in the form that ONNX Runtime runs fastest."""

import numpy as np
import onnx_ir as ir

from export.graph import array_of, producer_of, replace_value

END = np.iinfo(np.int64).max
LARGEST_BIAS = 2**30


def lower_convolutions(graph: ir.Graph) -> None:
    """Give every convolution with quantized weights its fastest form, in place.

    | input | output | form |
    | --- | --- | --- |
    | quantized | quantized next, a ReLU between at most | as it is: the runtime fuses it to QLinearConv |
    | quantized | float: a GELU, a residual sum | Slices, Concat, MatMul of integers |
    | float | any | weights back to float when a session starts |

    The runtime has no other integer convolution that is fast: where no QuantizeLinear follows it computes in float,
    from weights that it dequantizes at every run. Integers and scales are the same in all forms; a MatMul's weights
    are stored as (kernel * in, out). The runtime moves the Transposes through what is between two convolutions, where
    they cancel. Convolutions in groups stay as they are.
    """
    for node in list(graph):
        weight = producer_of(node, 1, "DequantizeLinear") if node.op_type == "Conv" else None
        if weight is None or len(weight.outputs[0].uses()) != 1:
            continue
        values = producer_of(node, 0, "DequantizeLinear")
        if values is None:
            _dequantize_at_start(graph, node, weight)
        elif node.attributes.get_int("group", 1) == 1 and not _fuses(node, values, weight):
            _multiply(graph, node, values, weight)
    graph.sort()


def _dequantize_at_start(graph: ir.Graph, node: ir.Node, weight: ir.Node) -> None:
    """The runtime folds a Cast and a Mul of constants, but not a DequantizeLinear."""
    tape = ir.tape.Tape(graph)
    integers, scale = weight.inputs[:2]
    assert integers is not None and integers.shape is not None
    shape = ir.tensor(np.array([-1, *[1] * (len(integers.shape) - 1)]), name=f"{integers.name}.by_channel")
    floats = tape.op("Cast", [integers], {"to": ir.DataType.FLOAT})
    node.replace_input_with(1, tape.op("Mul", [floats, tape.op("Reshape", [scale, tape.initializer(shape)])]))
    graph.remove(weight, safe=True)


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


def _multiply(graph: ir.Graph, node: ir.Node, values: ir.Node, weight: ir.Node) -> None:
    tape = ir.tape.Tape(graph)
    stored = weight.inputs[0]
    kernel = array_of(stored)
    assert stored is not None
    rank = kernel.ndim
    integers, scale, zero_point = values.inputs
    last = tape.op("Transpose", [integers], {"perm": [0, *range(2, rank), 1]})
    columns = tape.op("DequantizeLinear", [_windows(tape, node, last, zero_point, kernel.shape[2:]), scale, zero_point])

    matrix = kernel.transpose(*range(2, rank), 1, 0).reshape(-1, len(kernel))
    stored.const_value, stored.shape = ir.tensor(matrix, name=stored.name), ir.Shape(matrix.shape)
    weight.outputs[0].shape = None
    weight.attributes["axis"] = ir.AttrInt64("axis", 1)

    result = tape.op("MatMul", [columns, weight.outputs[0]])
    if len(node.inputs) > 2:
        result = tape.op("Add", [result, node.inputs[2]])
    result = tape.op("Transpose", [result], {"perm": [0, rank - 1, *range(1, rank - 1)]})
    replace_value(node.outputs[0], result)
    graph.remove(node, safe=True)
    if not values.outputs[0].uses():
        graph.remove(values, safe=True)


def _windows(
    tape: ir.tape.Tape, node: ir.Node, integers: ir.Value, zero_point: ir.Value | None, sizes: tuple[int, ...]
) -> ir.Value:
    """What each window of a convolution sees: (batch, ..., in) to (batch, ..., kernel * in)."""
    spatial = len(sizes)

    def constant(name: str, *numbers: int) -> ir.Value:
        return tape.initializer(ir.tensor(np.array(numbers, np.int64), name=f"{node.name}.{name}"))

    pads = node.attributes.get_ints("pads", [0] * 2 * spatial)
    strides = node.attributes.get_ints("strides", [1] * spatial)
    dilations = node.attributes.get_ints("dilations", [1] * spatial)
    if any(pads):
        both_ends = [0, *pads[:spatial], 0, 0, *pads[spatial:], 0]
        integers = tape.op("Pad", [integers, constant("pads", *both_ends), zero_point])
    # The last axis first: what the next one slices are whole rows of windows.
    for number in reversed(range(spatial)):
        size, stride, dilation = sizes[number], strides[number], dilations[number]
        if size == stride == 1:
            continue
        axis, step = constant(f"axis_{number}", number + 1), constant(f"step_{number}", stride)
        slices = []
        for place in range(size):
            start = constant(f"start_{number}_{place}", dilation * place)
            # Up to where the last window has this element.
            end = constant(f"end_{number}_{place}", dilation * (place + 1 - size) or END)
            slices.append(tape.op("Slice", [integers, start, end, axis, step]))
        integers = tape.op("Concat", slices, {"axis": spatial + 1}) if size > 1 else slices[0]
    return integers
