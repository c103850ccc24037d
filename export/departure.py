"""Where a file's features depart from torch's: torch follows the file, layer by layer."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, nn

from export.model import Pipeline, run_file, run_in_torch
from export.runtime import open_session
from quant import BitWidth, QuantLayer
from quant.bits import FLOAT_BITS

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
PRODUCTS = ("Conv", "Gemm", "MatMul")  # and MatMulNBits, ConvInteger, ...
NEAR_AN_EDGE = 0.05  # of a step


@dataclass
class Departure:
    """Between which layers, in the order they run, the numbers depart.

    Attributes:
        after: last layer that gets what it gets in torch; None when the first does not.
        before: first layer that does not; None when all do.
    """

    after: str | None
    before: str | None

    def __str__(self) -> str:
        places = [f"after layer {self.after}"] * bool(self.after) + [f"before layer {self.before}"] * bool(self.before)
        return f"features depart {' and '.join(places) or 'in a graph whose layers have no names'}"


def find_departure(
    proto: onnx.ModelProto,
    reference: Pipeline,
    run: BitWidth,
    clips: Sequence[tuple[Tensor, ...]],
    smallest_cosine: float,
) -> Departure | None:
    """Compare what each convolution and linear layer gets, given that all layers before got what they get in the file.

    A value near a rounding edge may fall to either side of it, whoever computes it, and at few bits one such value
    moves all features. So torch goes on with the file's numbers, and a value that lies near an edge in torch and
    one step away in the file is no departure.

    The graph runs with these tensors as outputs, so without ONNX Runtime's fusions around them.

    Args:
        proto: a file written by `to_onnx`.
        reference: what the file holds, in torch.
        run: bit-width.
        clips: inputs of the file on which features depart.
        smallest_cosine: what counts as equal.

    Returns:
        of the first clip that has one; None when only values near an edge differ.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    layers = {name: module for name, module in reference.encoder.named_modules() if isinstance(module, LAYERS)}
    products = {name: _product(probed.graph, f"encoder.{name}.weight") for name in layers}
    places = {name: _place(probed.graph, node, layers[name]) for name, node in products.items() if node is not None}
    features = probed.graph.output[0].name
    names = sorted({*places.values(), features})
    with _probing(probed, names) as session:
        for inputs in clips:
            tensors = _tensors(session, inputs)
            given = {name: tensors[place] for name, place in places.items()}
            with _following(reference.encoder, given, run, smallest_cosine) as equal:
                expected = run_in_torch(reference, run, inputs)[0]
            before = next((name for name, is_equal in equal.items() if not is_equal), None)
            if before is None and _equal(tensors[features], expected, smallest_cosine):
                continue
            order = list(equal)
            last = len(order) if before is None else order.index(before)
            return Departure(order[last - 1] if last else None, before)
    return None


@contextmanager
def _following(
    model: nn.Module, given: dict[str, Tensor], run: BitWidth, smallest_cosine: float
) -> Iterator[dict[str, bool]]:
    """Inside, layers get the given inputs; by name, in the order they run: whether torch's were the same."""
    equal: dict[str, bool] = {}

    def replace(name: str, layer: nn.Module, values: Tensor) -> Tensor | None:
        found = given[name]
        if found.numel() != values.numel():
            equal[name] = False
            return None
        found = found.view_as(values)
        if not isinstance(layer, QuantLayer) or layer.bits_at(run).activation == FLOAT_BITS:
            equal[name] = _equal(found, values, smallest_cosine)
            return found
        shift = 0 if layer.activation_shift is None else layer.activation_shift
        expected = _but_for_ties(layer, layer.bits_at(run).activation, values - shift, found)
        equal[name] = _equal(found, expected, smallest_cosine)
        return found + shift  # on the grid: the layer quantizes it to itself

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: replace(name, layer, args[0])
        )
        for name in given
    ]
    try:
        yield equal
    finally:
        for hook in hooks:
            hook.remove()


def _but_for_ties(layer: QuantLayer, bits: int, values: Tensor, found: Tensor) -> Tensor:
    """The values on their grid; those near an edge, where `found` is a step away, as found."""
    scale, _ = layer.activation_qparams(bits)
    quantized = layer.on_grid(values, bits)
    steps = values / scale
    near = (steps - steps.floor() - 0.5).abs() < NEAR_AN_EDGE
    return torch.where(near & ((quantized - found).abs() < 1.5 * scale), found, quantized)


def _product(graph: onnx.GraphProto, weight: str) -> onnx.NodeProto | None:
    """The node that multiplies with a weight, however many operators unpack that first."""
    names = {tensor.name for tensor in graph.initializer if tensor.name.startswith(weight)}
    for node in graph.node:  # in topological order
        if names & set(node.input):
            if node.op_type.startswith(PRODUCTS):
                return node
            names |= set(node.output)
    return None


def _place(graph: onnx.GraphProto, product: onnx.NodeProto, layer: nn.Module) -> str:
    """What a layer gets. A convolution that became a MatMul gets its windows: what they were cut out of is added."""
    if product.op_type == "Conv" or isinstance(layer, nn.Linear):
        return str(product.input[0])
    makers = {output: node for node in graph.node for output in node.output}
    quantize = makers[product.input[0]]
    while quantize.op_type != "QuantizeLinear":
        quantize = makers[quantize.input[0]]
    whole = f"{quantize.output[0]}.whole"
    if whole not in makers:
        graph.node.append(helper.make_node("DequantizeLinear", [quantize.output[0], *quantize.input[1:3]], [whole]))
    return whole


@contextmanager
def _probing(probed: onnx.ModelProto, names: Sequence[str]) -> Iterator[onnxruntime.InferenceSession]:
    """A session of a graph whose outputs are these tensors, but for its own inputs; its outputs are lost."""
    inputs = {value.name for value in probed.graph.input}
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probed.onnx"
        onnx.save(probed, path)
        yield open_session(path)


def _tensors(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A session's inputs and outputs by name."""
    given = {spec.name: tensor for spec, tensor in zip(session.get_inputs(), inputs, strict=True)}
    names = [spec.name for spec in session.get_outputs()]
    return given | dict(zip(names, run_file(session, inputs), strict=True))


def _equal(found: Tensor, expected: Tensor, smallest_cosine: float) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = found.double().flatten(), expected.double().flatten()
    return torch.equal(found, expected) or bool(F.cosine_similarity(found, expected, dim=0) >= smallest_cosine)
