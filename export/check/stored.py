"""The numbers a file stores for each quantized layer, against those of `quant`, bit for bit."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch

from export.check.following import clip_and_quotient
from export.graph.packing import stored_weight, weight_name
from export.graph.qdq import activation_range
from export.onnx_file import stored_array
from quant import BitWidth, QuantActivation, QuantLayer
from quant.bits import FLOAT_BITS


def first_difference(
    proto: onnx.ModelProto, layers: Mapping[str, QuantActivation], run: BitWidth, folder: str | Path = ""
) -> str | None:
    """First layer, or tensor of an attention, whose numbers are not those of `quant`; None if all are.

    Compared are integers, scales, zero points, clipping ranges, and what each channel is shifted and multiplied by.

    Args:
        proto: a file written by `to_onnx`.
        layers: calibrated layers and tensors by name.
        run: bit-width of the file.
        folder: of the file, for weights that are not in the message: see `export.onnx_file.load`.
    """
    graph = _Graph(proto, str(folder))
    return next((name for name, layer in layers.items() if not _equal(graph, name, layer, run)), None)


def _equal(graph: "_Graph", name: str, layer: QuantActivation, run: BitWidth) -> bool:
    if not isinstance(layer, QuantLayer):
        bits = layer.bits_at(run).activation
        return bits == FLOAT_BITS or graph.quantizes(*(_array(value) for value in layer.activation_qparams(bits)))
    try:
        pairs = list(_pairs(graph, name, layer, run))
    except (KeyError, IndexError, ValueError):
        return False  # an operator or initializer that belongs to the layer is not there, or of another shape
    return all(np.array_equal(found, expected) for found, expected in pairs)


def _pairs(graph: "_Graph", name: str, layer: QuantLayer, run: BitWidth) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Found and expected numbers of one layer: integers of the weight as they are, all else as float64."""
    bits = layer.bits_at(run)
    if bits.weight == FLOAT_BITS:
        # The exporter may fold a normalization into a float weight: its values are the features' business.
        product = graph.takers[f"encoder.{name}.weight", 1]
    else:
        product, found_integers, found_scale = graph.weight(name, bits.weight)
        integers, scale = layer.weight_integers(run)
        # Flat, because a kernel in groups is stored as (out, in * ...).
        yield found_integers.flatten(), _in_file_order(integers, product).numpy().flatten()
        yield found_scale, _array(_in_file_order(scale, product) if scale.shape[1] > 1 else scale.flatten())
    if bits.activation == FLOAT_BITS:
        maker = graph.makers.get(product.input[0])
        yield np.array(maker is not None and maker.op_type == "DequantizeLinear"), np.array(False)
        return
    if layer.activation_shift is not None:
        yield graph.shift(product, layer.per_token), _array(layer.activation_shift)
    spread = layer.spread_at(run)
    if spread is not None:
        yield graph.factor(product), _array(spread.reciprocal())
    if layer.per_token:
        yield graph.top_of_tokens(product), np.array(2.0**bits.activation - 1)
        return
    found_scale, found_zero_point, clip = graph.activation(product)
    scale, zero_point = layer.activation_qparams(bits.activation)
    yield found_scale, _array(scale)
    yield found_zero_point, _array(zero_point)
    if bits.activation < 8:
        ends = activation_range(scale, zero_point, bits.activation)
        yield clip, np.array(ends, dtype=np.float32).astype(np.float64)


def _in_file_order(values: torch.Tensor, product: onnx.NodeProto) -> torch.Tensor:
    """(out, in, ...) as a file has it: (... * in, out) where a MatMul takes it."""
    return values.movedim(1, -1).flatten(1).T if product.op_type.startswith("MatMul") else values


def _array(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().double().numpy()
    return array


class _Graph:
    """A file's graph by name: which values it stores, which node makes or takes a tensor."""

    def __init__(self, proto: onnx.ModelProto, folder: str) -> None:
        self.folder = folder
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.makers = {output: node for node in proto.graph.node for output in node.output}
        self.takers = {(name, place): node for node in proto.graph.node for place, name in enumerate(node.input)}

    def value(self, name: str) -> np.ndarray:
        return stored_array(self.stored[name], self.folder).astype(np.float64)

    def quantizes(self, scale: np.ndarray, zero_point: np.ndarray) -> bool:
        """Whether any tensor is quantized with these numbers: the exporter gives tensors no name to find them by."""
        pairs = [node.input[1:3] for node in self.makers.values() if node.op_type == "QuantizeLinear"]
        return any(self.scale(a) == scale and self.zero_point(b) == zero_point for a, b in pairs)

    def scale(self, name: str) -> np.ndarray:
        """As stored, also where a DequantizeLinear of 1 hides it from the runtime."""
        return self.value(name if name in self.stored else self.makers[name].input[1])

    def zero_point(self, name: str) -> np.ndarray:
        """As of unsigned integers: a signed grid is the same grid, 128 lower."""
        return self.value(name) + 128 * (self.stored[name].data_type == onnx.TensorProto.INT8)

    def weight(self, layer: str, bits: int) -> tuple[onnx.NodeProto, np.ndarray, np.ndarray]:
        """The product a layer's weight goes into, the weight's integers and its scale."""
        name, scale = weight_name(layer), ""
        product = self.takers[name, 0] if (name, 0) in self.takers else self.takers[name, 1]
        while product.op_type in ("DequantizeLinear", "Cast", "Mul", "Reshape"):
            if product.op_type in ("DequantizeLinear", "Mul"):
                scale = product.input[1]
            output = product.output[0]
            product = self.takers[output, 1] if (output, 1) in self.takers else self.takers[output, 0]
        if product.op_type == "MatMulInteger":
            scale = self.takers[self.takers[product.output[0], 0].output[0], 0].input[1]
        while scale not in self.stored:  # gets a shape, or the factor of a batch normalization
            scale = self.makers[scale].input[0]
        return product, stored_weight(self.stored, layer, bits, self.folder), self.value(scale)

    def top_of_tokens(self, product: onnx.NodeProto) -> np.ndarray:
        """Largest integer of a product's input, whose tokens each have a range."""
        clip, _ = self._tokens(product)
        return self.value(clip.input[2])

    def _tokens(self, product: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        tokens = clip_and_quotient(product, self.makers)
        if tokens is None:
            raise KeyError(f"{product.name} takes no integers of tokens")
        return tokens

    def shift(self, product: onnx.NodeProto, per_token: bool) -> np.ndarray:
        """What is taken off a product's input, (in,), before it is clipped and quantized."""
        if per_token:
            _, divided = self._tokens(product)
            return self.value(self.makers[divided.input[0]].input[1])
        node = self.makers[self.makers[product.input[0]].input[0]]
        while node.op_type != "Sub":
            node = self.makers[node.input[0]]
        return self.value(node.input[1])

    def factor(self, product: onnx.NodeProto) -> np.ndarray:
        """What a product's input is multiplied by, (in,), before it is clipped and quantized."""
        node = self.makers[self.makers[product.input[0]].input[0]]
        while node.op_type in ("QuantizeLinear", "Clip"):
            node = self.makers[node.input[0]]
        if node.op_type != "Mul":
            raise KeyError(f"{product.name} takes what is not multiplied by a number for each channel")
        return self.value(node.input[1])

    def activation(self, product: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale, zero point and clipping range (2,) of a product's input. The exporter shares equal ones."""
        dequantize = self.makers[product.input[0]]
        quantize = self.makers[dequantize.input[0]]
        while quantize.op_type != "QuantizeLinear":  # a convolution's windows are cut out of its integers
            quantize = self.makers[quantize.input[0]]
        if dequantize.input[1:3] != quantize.input[1:3]:
            raise KeyError(f"{product.name} dequantizes with other numbers than it quantizes with")
        clip = self.makers.get(quantize.input[0])
        clipped = clip is not None and clip.op_type == "Clip"
        ends = [self.value(end) for end in clip.input[1:3]] if clipped else [-np.inf, np.inf]  # type: ignore[union-attr]
        return self.value(quantize.input[1]), self.value(quantize.input[2]), np.array(ends)
