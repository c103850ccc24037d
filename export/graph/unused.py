"""Numbers that nothing in a graph uses any more: ONNX Runtime would warn of each at every load."""

import onnx


def drop_unused(proto: onnx.ModelProto) -> None:
    """Remove initializers that no node, subgraph or output takes, in place: what folding and lowering leave behind."""
    used = _taken(proto.graph) | {value.name for value in proto.graph.output}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)


def _taken(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes take, those of subgraphs too."""
    names: set[str] = set()
    for node in graph.node:
        names |= set(node.input)
        for attribute in node.attribute:
            for subgraph in [attribute.g, *attribute.graphs]:
                names |= _taken(subgraph) | {value.name for value in subgraph.output}
    return names
