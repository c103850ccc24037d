"""Prepare a model, observe its ranges, and run it at a bit-width."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from quant.bits import FLOAT_BITS, BitWidth, parse_bit_width
from quant.layers import QUANTIZED_FORM, Mode, QuantLayer
from quant.policy import LayerRule, Policy

# Layers that hold matrix weights but compute in their own way: never left in float without a word.
_OTHER_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Bilinear)


Model = TypeVar("Model", bound=nn.Module)


class NotCalibratedError(RuntimeError):
    """A run with quantized activations of a model whose ranges were never observed."""


def prepare(model: Model, policy: Policy | None = None) -> Model:
    """Turn every Conv1d, Conv2d and Linear of a model, in place, into its quantized form.

    Layers keep their identity, their names and their Parameters; the state dict gains the observed
    ranges (`activation_min`, `activation_max`) of each layer. A prepared model still runs in full
    precision until `at` says otherwise.

    Args:
        model: any module; returned for convenience.
        policy: per-layer bit-widths; the published rule by default.

    Raises:
        ValueError: nothing to prepare, already prepared, a pattern without a layer, or a layer type
            that has no quantized form and that the policy does not keep in full precision.
    """
    policy = policy or Policy()
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is prepared already; prepare a model once")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _OTHER_MATRIX_LAYERS)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Conv1d, Conv2d or Linear layer to quantize")
    rules = policy.rules(list(layers))
    full_precision = LayerRule(FLOAT_BITS, FLOAT_BITS)
    for name, layer in layers.items():
        if type(layer) not in QUANTIZED_FORM and rules[name] != full_precision:
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}, which has no quantized form; "
                f'keep it in float with the policy layers={{"{name}": "fp"}}'
            )
    mode = Mode(policy)
    for name, layer in layers.items():
        if type(layer) in QUANTIZED_FORM:
            layer.__class__ = QUANTIZED_FORM[type(layer)]  # type: ignore[assignment]
            assert isinstance(layer, QuantLayer)
            layer.attach(rules[name], mode)
    return model


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of a model by name, in the order of registration.

    Raises:
        ValueError: the model is not prepared.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantLayer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} is not prepared: call quant.prepare(model) first")
    return layers


@contextmanager
def at(model: nn.Module, bit_width: str | BitWidth, reuse_weights: bool = False) -> Iterator[None]:
    """Inside, the prepared model (and each prepared part of it) runs at a bit-width.

    Args:
        model: prepared, or a parent of prepared models.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        reuse_weights: quantize each weight only once inside; right as long as no weight changes there.

    Raises:
        ValueError: unknown bit-width, or a model that is not prepared.
        NotCalibratedError: activations are to be quantized and a layer's range was never observed.
    """
    run = parse_bit_width(bit_width)
    layers = quant_layers(model)
    modes = _modes(layers)
    _check_calibrated(layers, run)
    before = [(mode.bit_width, mode.weights) for mode in modes]
    for mode in modes:
        mode.bit_width, mode.weights = run, {} if reuse_weights else None
    try:
        yield
    finally:
        for mode, (previous, weights) in zip(modes, before, strict=True):
            mode.bit_width, mode.weights = previous, weights


@contextmanager
def observe(model: nn.Module) -> Iterator[None]:
    """Inside, every forward pass widens the layers' activation ranges, which start empty.

    On leaving, the ranges of all ranks of a distributed run are joined. If an exception leaves the
    block, the ranges from before are put back.
    """
    layers = quant_layers(model)
    modes = _modes(layers)
    before = [(layer.activation_min.clone(), layer.activation_max.clone()) for layer in layers.values()]
    for layer in layers.values():
        layer.activation_min.fill_(torch.inf)
        layer.activation_max.fill_(-torch.inf)
        layer.calibrated = False
    for mode in modes:
        mode.observing = True
    try:
        yield
        _join_ranks(list(layers.values()))
    except BaseException:
        for layer, (minimum, maximum) in zip(layers.values(), before, strict=True):
            layer.activation_min.copy_(minimum)
            layer.activation_max.copy_(maximum)
            layer.calibrated = False
        raise
    finally:
        for mode in modes:
            mode.observing = False


def calibrate(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None) -> None:
    """Set the activation ranges of a prepared model from data, in evaluation mode, without gradients.

    Args:
        model: prepared.
        batches: what `forward` takes, one at a time.
        forward: runs the model on one batch; the model itself by default.

    Raises:
        ValueError: no batch at all.
    """
    training = model.training
    model.eval()
    count = 0
    try:
        with torch.no_grad(), observe(model):
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                (forward or model)(batch)
            if count == 0:
                raise ValueError("calibration got no batch: give at least one")
    finally:
        model.train(training)


def _modes(layers: dict[str, QuantLayer]) -> list[Mode]:
    return list({id(layer.mode): layer.mode for layer in layers.values()}.values())


def _check_calibrated(layers: dict[str, QuantLayer], run: BitWidth) -> None:
    for name, layer in layers.items():
        if layer.calibrated or layer.bits_at(run).activation == FLOAT_BITS:
            continue
        if not torch.isfinite(layer.activation_max - layer.activation_min):
            raise NotCalibratedError(
                f"layer {name!r} has no activation range for {run}: run quant.calibrate(model, batches) first"
            )
        layer.calibrated = True


def _join_ranks(layers: list[QuantLayer]) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    ranges = torch.stack([value for layer in layers for value in (-layer.activation_min, layer.activation_max)])
    dist.all_reduce(ranges, op=dist.ReduceOp.MAX)
    for layer, (minimum, maximum) in zip(layers, ranges.view(-1, 2), strict=True):
        layer.activation_min.copy_(-minimum)
        layer.activation_max.copy_(maximum)
