"""What the passes over an ONNX graph share."""

import numpy as np
import onnx_ir as ir


def producer_of(node: ir.Node, place: int, op_type: str) -> ir.Node | None:
    """The node that makes an input, if it is of this type."""
    value = node.inputs[place] if place < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type else None


def array_of(value: ir.Value | None) -> np.ndarray:
    """The numbers of an initializer, or of a product of initializers.

    Raises:
        ValueError: a value that is not known before the graph runs.
    """
    if value is not None and value.const_value is not None:
        return value.const_value.numpy()
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Mul":
        raise ValueError(f"{value} is not an initializer")
    left, right = map(array_of, producer.inputs)
    product: np.ndarray = left * right
    return product


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Put a value in another's place, under its name: it may be an output of the graph."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name, old.name = old.name, f"{old.name}.replaced"
    new.name, new.type, new.shape = name, old.type, old.shape
