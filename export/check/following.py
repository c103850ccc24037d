"""Torch goes on with a file's roundings: a value near a rounding edge may fall to either side, whoever computes it.

At few bits one such value moves all features, so that two honest computations end far apart. Given the file's integers
at every tensor that is quantized, torch has to arrive at the same features, and has to round as the file did but for
values at an edge. The integers are read from the file as it runs: the runtime's fusions stay as they are.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn

from export.check.agreement import frame_errors
from export.graph.pipeline import Runs, run_in_torch
from export.onnx_file import stored_array
from export.runtime.ort_session import Session, session_options
from export.runtime.session import run_session
from quant import BitWidth, QuantActivation
from quant.bits import FLOAT_BITS

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
PRODUCTS = ("Conv", "Gemm", "MatMul")  # and MatMulNBits, ConvInteger, ...
NEAR_AN_EDGE = 0.01  # of a step; float rounding has been seen to move values by 0.0002


class Place(NamedTuple):
    """Where a file holds what a layer gets: a tensor of integers, with scale and zero point, or of floats, without.

    Scale and zero point are numbers, or tensors' names where each token has its own. A key of integer attention is
    `transposed` before it is quantized; what a convolution takes as a product has its `channels_last`. `bias` is how
    far, in steps of the integers, the runtime moves what it quantizes: it rounds the bias of a convolution in integers
    to input scale times weight scale (QLinearConv, B).
    """

    tensor: str
    scale: float | str | None = None
    zero_point: int | str = 0
    transposed: bool = False
    channels_last: bool = False
    bias: float = 0.0


class Probe(NamedTuple):
    """A session that gives the file's outputs, then what its layers get; and where each layer's is."""

    session: Session
    outputs: int
    places: dict[str, Place]


@dataclass
class Followed:
    """One batch through a file, and through torch with the file's roundings.

    Attributes:
        found: the file's outputs.
        expected: torch's, given the file's roundings.
        equal: of each tensor that was compared, in the order they run: whether all roundings are torch's but for values
            at an edge, or, in float, whether the values agree.
        roundings: values that were rounded, padding left out.
        at_edge: of them, those that the file rounded to the other side of an edge.
    """

    found: list[Tensor] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)
    equal: dict[str, bool] = field(default_factory=dict)
    roundings: int = 0
    at_edge: int = 0

    def departure(self, front_end: bool, limit: float = math.inf) -> str | None:
        """Between which layers, in the order they run, the numbers depart; None where they do not.

        Args:
            front_end: the file makes log-mels of its own, which the first layer gets.
            limit: error over variance of a frame, above which features depart though all that was compared is equal.
        """
        order, found, expected = list(self.equal), self.found[0], self.expected[0]
        place = next((place for place, equal in enumerate(self.equal.values()) if not equal), len(order))
        wrong = found.shape != expected.shape
        wrong = wrong or bool((frame_errors(found.flatten(0, -2), expected.flatten(0, -2)) > limit).any())
        if place == len(order) and not wrong:
            return None
        places = [f"after layer {order[place - 1]}"] if place else ["in the front end"] * front_end
        places += [f"before layer {name}" for name in order[place : place + 1]]
        return f"features depart {' and '.join(places) or 'in a graph whose layers have no names'}"


def probe(
    proto: onnx.ModelProto, encoder: nn.Module, run: BitWidth, folder: str | Path = "", floats: bool = False
) -> Probe:
    """A session of a file with what its layers get among the outputs.

    Args:
        proto: a file written by `to_onnx` or `stream_to_onnx`.
        encoder: what it holds, in torch.
        run: its bit-width.
        folder: of the file, for weights that are not in the message: see `export.onnx_file.load`.
        floats: also what layers without quantized inputs get; the runtime's float fusions change around them.
    """
    probed = onnx.ModelProto()
    probed.graph.CopyFrom(proto.graph)
    probed.opset_import.extend(proto.opset_import)
    probed.functions.extend(proto.functions)
    probed.ir_version = proto.ir_version
    places, outputs = _places(probed.graph, encoder, run, floats, str(folder)), len(probed.graph.output)
    known = {value.name for value in [*probed.graph.output, *probed.graph.input]}
    wanted = [part for place in places.values() for part in place if isinstance(part, str) and part not in known]
    for name in dict.fromkeys(wanted):
        probed.graph.output.append(helper.make_empty_tensor_value_info(name))
    path = Path(folder) / "probed.onnx"  # only its folder is looked at
    return Probe(Session(path, session_options(0, exact=True), probed.SerializeToString()), outputs, places)


def follow(
    probe: Probe, pipeline: Runs, run: BitWidth, inputs: tuple[Tensor, ...], limit: float,
    own: tuple[Tensor, ...] | None = None,
) -> Followed:  # fmt: skip
    """Run a file, then torch with the file's roundings.

    Args:
        probe: of the file.
        pipeline: what the file holds, in torch.
        run: bit-width.
        inputs: of the file.
        limit: error over variance up to which float tensors are equal.
        own: torch's inputs where they are others.
    """
    values = run_session(probe.session, inputs)
    tensors = {spec.name: value for spec, value in zip(probe.session.get_outputs(), values, strict=True)}
    tensors |= {spec.name: value for spec, value in zip(probe.session.get_inputs(), inputs, strict=True)}
    followed = Followed(found=values[: probe.outputs])
    with _following(probe.places, pipeline.encoder, run, tensors, followed, limit):
        followed.expected = run_in_torch(pipeline, run, inputs if own is None else own)
    return followed


@contextmanager
def _following(
    places: dict[str, Place], encoder: nn.Module, run: BitWidth, tensors: dict[str, Tensor], followed: Followed,
    limit: float,
) -> Iterator[None]:  # fmt: skip
    """Inside, layers get what they get in the file."""

    def replace(name: str, layer: nn.Module, values: Tensor) -> Tensor | None:
        place = places[name]
        found = tensors[place.tensor]
        if found.numel() != values.numel():
            followed.equal[name] = False
            return None
        if place.channels_last:
            found = found.movedim(-1, 1)
        found = found.transpose(-2, -1) if place.transposed else found.reshape(values.shape)
        if place.scale is None or not isinstance(layer, QuantActivation):
            error = frame_errors(found.reshape(-1, 1), values.reshape(-1, 1)).mean()
            followed.equal[name] = bool(error <= limit)
            return found
        scale, zero_point = (tensors[it] if isinstance(it, str) else it for it in (place.scale, place.zero_point))
        found = found.float() - zero_point
        followed.equal[name] = _compare(followed, layer, run, layer.normalized(values), found, scale, place.bias)
        return layer.denormalized(found * scale)

    # A token that lost its ends to rounding would be given another range, and be rounded once more.
    tokens = [layer for layer in map(encoder.get_submodule, places) if getattr(layer, "per_token", False)]
    hooks = [
        encoder.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: replace(name, layer, args[0])
        )
        for name in places
    ]
    for layer in tokens:
        layer.__dict__["on_grid"] = lambda values, bits: values
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in tokens:
            del layer.__dict__["on_grid"]


def _compare(
    followed: Followed, layer: QuantActivation, run: BitWidth, values: Tensor, others: Tensor, scale: Tensor | float,
    bias: float,
) -> bool:  # fmt: skip
    """Count the roundings that are not torch's; whether all of them are at an edge.

    Args:
        followed: gets the counts.
        layer: that the values go into.
        run: bit-width.
        values: torch's, before they are rounded.
        others: the file's integers less their zero point, of the shape of values.
        scale: of the integers, a number or of shape (..., 1).
        bias: see `Place`.
    """
    bits = layer.bits_at(run).activation
    steps = values / scale
    own = (type(layer).on_grid(layer, values, bits) / scale).round()  # not what `_following` has put in its place
    valid = layer._valid(values)
    differ = own != others
    if valid is not None:
        differ &= valid
    followed.roundings += values.numel() if valid is None else int(valid.expand(values.shape).sum())
    if not differ.any():
        return bool(steps.isfinite().all())
    own, others, steps = own[differ], others[differ], steps[differ]
    distance = (steps - (own + others) / 2).abs()
    at_edge = ((own - others).abs() == 1) & (distance <= NEAR_AN_EDGE + bias)
    followed.at_edge += int(at_edge.sum())
    return bool(at_edge.all())


def _places(graph: onnx.GraphProto, encoder: nn.Module, run: BitWidth, floats: bool, folder: str) -> dict[str, Place]:
    """By name, in the order of the encoder's modules."""
    makers = {output: node for node in graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    places: dict[str, Place] = {}
    layers, others = [], []
    for name, module in encoder.named_modules():
        quantized = isinstance(module, QuantActivation) and module.bits_at(run).activation != FLOAT_BITS
        if isinstance(module, LAYERS):
            layers.append((name, quantized, isinstance(module, nn.modules.conv._ConvNd)))
        elif quantized:
            others.append((name, module))
    taken = set()
    for name, quantized, convolution in layers:
        product = _product(graph, f"encoder.{name}.weight")
        if product is None:
            continue
        convolution = convolution and product.op_type == "MatMul"
        if not quantized:
            if floats:
                tensor, last = _unwindowed(product, makers) if convolution else (str(product.input[0]), False)
                places[name] = Place(tensor, channels_last=last)
            continue
        tokens = _by_token(product, makers)
        if tokens is not None:
            places[name] = tokens
            continue
        quantize, last = makers.get(product.input[0]), convolution
        while quantize is not None and quantize.op_type != "QuantizeLinear":
            last = last and quantize.op_type != "Transpose"
            quantize = makers.get(quantize.input[0])
        found = None if quantize is None else _quantized(quantize, stored, makers)
        if quantize is not None and found is not None and isinstance(found.scale, float):
            bias = _moved_by_bias(quantize, stored, makers, folder) / found.scale
            places[name] = found._replace(bias=bias, channels_last=last)
            taken.add(found.tensor)
    # Tensors of attention products have no weight to find them by: their numbers and their order tell.
    left = [
        place
        for node in quantizers
        if node.output[0] not in taken and (place := _quantized(node, stored, makers)) is not None
    ]
    for name, module in others:
        scale, zero_point = (float(value) for value in module.activation_qparams(module.bits_at(run).activation))
        wanted = (scale, zero_point % 128)  # stored as int8 it is 128 lower
        match = next((place for place in left if (place.scale, int(place.zero_point) % 128) == wanted), None)
        if match is not None:
            parent, _, child = name.rpartition(".")
            query = getattr(encoder.get_submodule(parent), "query", None)
            places[name] = match._replace(transposed=child == "key" and any(query is other for _, other in others))
            left.remove(match)
    return places


def _unwindowed(product: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> tuple[str, bool]:
    """What a convolution that is a product takes, before windows are cut out, and whether its channels are last."""
    name = str(product.input[0])
    windows = makers.get(name)
    gather = makers.get(windows.input[0]) if windows is not None and windows.op_type == "Reshape" else None
    if gather is not None and gather.op_type == "Gather":
        name = str(makers[gather.input[0]].input[0])  # its axes of time were made one
    padded = makers.get(name)
    name = str(padded.input[0]) if padded is not None and padded.op_type == "Pad" else name
    first = makers.get(name)
    return (name, True) if first is None or first.op_type != "Transpose" else (str(first.input[0]), False)


def _by_token(product: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> Place | None:
    """Integers that take their scale and zero point from the token they are in: Clip(Round(x / scale) + zero point)."""
    tokens = clip_and_quotient(product, makers)
    if tokens is None:
        return None
    clip, divided = tokens
    return Place(str(clip.output[0]), str(divided.input[1]), str(makers[clip.input[0]].input[1]))


def clip_and_quotient(
    product: onnx.NodeProto, makers: dict[str, onnx.NodeProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Clip and Div of the integers of tokens that a product takes, as they are or times their scale; None of others."""
    clip = makers.get(product.input[0])
    while clip is not None and clip.op_type in ("Cast", "Mul", "Sub"):
        clip = makers.get(clip.input[0])
    divided = quotient(clip, makers)
    return None if clip is None or divided is None else (clip, divided)


def quotient(clip: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The Div of Clip(Round(x / scale) + zero point), by the scale of each token; None of another graph."""
    node = clip
    for operator in ("Clip", "Add", "Round"):
        if node is None or node.op_type != operator:
            return None
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "Div" and node.input[1] in makers else None


def _quantized(node: onnx.NodeProto, stored: dict[str, Any], makers: dict[str, onnx.NodeProto]) -> Place | None:
    """The integers of a QuantizeLinear; its scale as stored, also behind a DequantizeLinear of 1."""
    try:
        scale = stored[node.input[1] if node.input[1] in stored else makers[node.input[1]].input[1]]
        zero_point = stored[node.input[2]]
    except (KeyError, IndexError):
        return None
    numbers = (np.asarray(numpy_helper.to_array(tensor)) for tensor in (scale, zero_point))
    first, second = (array.item() if array.size == 1 else None for array in numbers)
    return None if first is None or second is None else Place(str(node.output[0]), float(first), int(second))


def _moved_by_bias(
    quantize: onnx.NodeProto, stored: dict[str, Any], makers: dict[str, onnx.NodeProto], folder: str
) -> float:
    """By how much the rounded bias moves what a QuantizeLinear takes, where the runtime makes QLinearConv of both."""

    def numbers(name: str) -> np.ndarray:
        if name in stored:
            return np.asarray(stored_array(stored[name], folder), np.float64)
        maker = makers[name]  # a scale with the factor of a batch normalization, or in another shape
        return numbers(maker.input[0]) * numbers(maker.input[1]) if maker.op_type == "Mul" else numbers(maker.input[0])

    node = makers.get(quantize.input[0])
    while node is not None and node.op_type in ("Relu", "Clip"):
        node = makers.get(node.input[0])
    if node is None or node.op_type != "Conv" or len(node.input) < 3:
        return 0.0
    inputs = [makers.get(name) for name in node.input[:2]]
    if any(one is None or one.op_type != "DequantizeLinear" for one in inputs):
        return 0.0
    scale, weight_scale = (numbers(one.input[1]).flatten() for one in inputs if one is not None)
    step = np.abs(scale * weight_scale)
    bias = numbers(node.input[2])
    return float(np.abs(np.round(bias / step) * step - bias).max())


def _product(graph: onnx.GraphProto, weight: str) -> onnx.NodeProto | None:
    """The node that multiplies with a weight, however many operators unpack that first."""
    names = {tensor.name for tensor in graph.initializer if tensor.name.startswith(weight)}
    for node in graph.node:  # in topological order
        if names & set(node.input):
            if node.op_type.startswith(PRODUCTS):
                return node
            names |= set(node.output)
    return None
