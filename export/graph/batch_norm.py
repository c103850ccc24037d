"""Batch normalization that follows a quantized convolution becomes part of its scale and bias."""

import numpy as np
import onnx_ir as ir

from export.graph.nodes import array_of, producer_of, replace_value


def fold_batch_norms(graph: ir.Graph) -> None:
    """Fold every BatchNormalization behind a convolution of integers, in place.

    Integers and scale stay those of `quant`: a product in the graph gives each channel's scale a factor, and ONNX
    Runtime computes it once, when a session starts. Float convolutions are left for the runtime to fold.
    """
    for node in list(graph):
        if node.op_type != "BatchNormalization":
            continue
        convolution = producer_of(node, 0, "Conv")
        if convolution is None or len(convolution.outputs[0].uses()) != 1:
            continue
        dequantize = producer_of(convolution, 1, "DequantizeLinear")
        if dequantize is not None:
            _fold(graph, node, convolution, dequantize)


def _fold(graph: ir.Graph, node: ir.Node, convolution: ir.Node, dequantize: ir.Node) -> None:
    gamma, beta, mean, variance = (array_of(value).astype(np.float64) for value in node.inputs[1:5])
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    bias = array_of(convolution.inputs[2]) if len(convolution.inputs) > 2 else 0
    name = f"{dequantize.outputs[0].name}.batch_norm"
    tape = ir.tape.Tape(graph)
    by_channel = tape.initializer(ir.tensor(factor.astype(np.float32), name=f"{name}_factor"))
    new_bias = tape.initializer(ir.tensor(((bias - mean) * factor + beta).astype(np.float32), name=f"{name}_bias"))
    dequantize.replace_input_with(1, tape.op("Mul", [dequantize.inputs[1], by_channel]))
    convolution.resize_inputs(3)
    convolution.replace_input_with(2, new_bias)
    replace_value(node.outputs[0], convolution.outputs[0])
    graph.remove(node, safe=True)
