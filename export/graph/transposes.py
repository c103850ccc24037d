"""Transposes that cancel, though functions of single numbers stand between them."""

from collections.abc import Iterator

import onnx_ir as ir

FUNCTIONS = ("Gelu", "Relu", "QuantizeLinear")


def join_transposes(graph: ir.Graph) -> None:
    """Make one of each two Transposes with functions of single numbers between, in place, or none where they cancel.

    A convolution that became a product of windows has its channels last, and a Transpose puts them first; what comes
    next in a speech encoder wants them last again. ONNX Runtime moves such Transposes by itself, OpenVINO does not.
    """
    for node in [node for node in graph if node.op_type == "Transpose"]:
        first = _transpose_above(node)
        if first is None or node.outputs[0].is_graph_output():
            continue
        perms = [list(each.attributes.get_ints("perm")) for each in (first, node)]
        perm = [perms[0][axis] for axis in perms[1]]
        values, joined = first.inputs[0], node.inputs[0]
        assert values is not None and joined is not None
        for value in _between(first, joined):
            value.shape = None  # its axes are others now
        node.outputs[0].replace_all_uses_with(joined)
        graph.remove(node, safe=True)
        if perm == sorted(perm):
            first.outputs[0].replace_all_uses_with(values)
            graph.remove(first, safe=True)
        else:
            first.attributes["perm"] = ir.AttrInt64s("perm", perm)


def _between(first: ir.Node, value: ir.Value) -> Iterator[ir.Value]:
    """Values from this one up to what the first Transpose makes."""
    producer: ir.Node | None = None
    while producer is not first:
        yield value
        producer = value.producer()
        assert producer is not None and producer.inputs[0] is not None
        value = producer.inputs[0]


def _transpose_above(node: ir.Node) -> ir.Node | None:
    """The Transpose that this one follows, with functions between that nothing else takes from; None without one."""
    while True:
        value = node.inputs[0]
        if value is None or len(value.uses()) > 1 or value.is_graph_output():
            return None
        producer = value.producer()
        if producer is None or producer.op_type == "Transpose":
            return producer
        if producer.op_type not in FUNCTIONS or not _of_single_numbers(producer):
            return None
        node = producer


def _of_single_numbers(node: ir.Node) -> bool:
    """Whether a function has the same parameters for all numbers: a scale of its own for each channel has an axis."""
    return all(value is None or (value.shape is not None and value.shape.rank() == 0) for value in node.inputs[1:])
