"""Where a file's features begin to depart from torch's: the inputs of its layers, one after the other."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
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
    proto: onnx.ModelProto, reference: Pipeline, run: BitWidth, inputs: tuple[Tensor, ...], smallest_cosine: float
) -> Departure:
    """Compare what each convolution and linear layer gets, on its grid, with what it gets in torch.

    The graph runs with these tensors as outputs, so without ONNX Runtime's fusions around them.

    Args:
        proto: a file written by `to_onnx`.
        reference: what the file holds, in torch.
        run: bit-width.
        inputs: of the file, on which features depart.
        smallest_cosine: what counts as equal.
    """
    with _inputs_of_layers(reference.encoder, run) as expected:
        run_in_torch(reference, run, inputs)
    products = {layer: _product(proto.graph, f"encoder.{layer}.weight") for layer in expected}
    tensors = {layer: node.input[0] for layer, node in products.items() if node is not None}
    found = _tensors(proto, inputs, sorted(set(tensors.values())))
    after = None
    for layer, name in tensors.items():
        if not _equal(found[name], expected[layer], smallest_cosine):
            return Departure(after, layer)
        after = layer
    return Departure(after, None)


@contextmanager
def _inputs_of_layers(model: nn.Module, run: BitWidth) -> Iterator[dict[str, Tensor]]:
    """Inside, what each layer multiplies with its weight is kept by name, in the order they run."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, values: Tensor) -> None:
        if isinstance(layer, QuantLayer) and (bits := layer.bits_at(run).activation) != FLOAT_BITS:
            shift = layer.activation_shift
            values = layer.on_grid(values if shift is None else values - shift, bits)
        kept.setdefault(name, values)

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given, name=name: keep(name, layer, given[0]))
        for name, layer in layers
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _product(graph: onnx.GraphProto, weight: str) -> onnx.NodeProto | None:
    """The node that multiplies with a weight, however many operators unpack that first."""
    names = {tensor.name for tensor in graph.initializer if tensor.name.startswith(weight)}
    for node in graph.node:  # in topological order
        if names & set(node.input):
            if node.op_type.startswith(PRODUCTS):
                return node
            names |= set(node.output)
    return None


def _tensors(proto: onnx.ModelProto, inputs: tuple[Tensor, ...], names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a graph by name, the graph's own inputs among them."""
    given = {value.name: tensor for value, tensor in zip(proto.graph.input, inputs, strict=True)}
    names = [name for name in names if name not in given]
    if not names:
        return given
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probed.onnx"
        onnx.save(probed, path)
        return given | dict(zip(names, run_file(open_session(path), inputs), strict=True))


def _equal(found: Tensor, expected: Tensor, smallest_cosine: float) -> bool:
    if found.numel() != expected.numel():
        return False
    found, expected = found.double().flatten(), expected.double().flatten()
    return torch.equal(found, expected) or bool(F.cosine_similarity(found, expected, dim=0) >= smallest_cosine)
