"""Prepare a model, run it at a bit-width, and the way back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from quant.activation import Mode, QuantActivation, running
from quant.attention import QUANTIZED_TENSOR, AttentionProducts
from quant.bits import FLOAT_BITS, FULL_PRECISION, BitWidth, parse_bit_width, row_of
from quant.grid.weights import check_groups
from quant.layers import QUANTIZED_FORM, QuantLayer
from quant.policy import Policy

# Layers that hold matrix weights but compute in their own way: never left in float without a word.
_OTHER_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Bilinear)
_ORIGINAL_FORM: dict[type[QuantActivation], type[nn.Module]] = {
    form: original for original, form in (*QUANTIZED_FORM.items(), *QUANTIZED_TENSOR.items())
}

Model = TypeVar("Model", bound=nn.Module)


class NotCalibratedError(RuntimeError):
    """A run with quantized activations of a model whose ranges were never observed."""


def is_prepared(model: nn.Module) -> bool:
    """Whether a model has quantized layers."""
    return any(isinstance(module, QuantLayer) for module in model.modules())


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
            that has no quantized form and that the policy does not keep in full precision; groups that do not
            divide a layer's inputs; `smooth` for a layer whose tokens have ranges of their own; `attention` for a model
            without products that can be quantized.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> model[2].weight.shape  # the same Parameters; the model runs in full precision as before
        torch.Size([2, 8])
    """
    policy = policy or Policy()
    if is_prepared(model):
        raise ValueError(f"{type(model).__name__} is prepared already; prepare a model once")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _OTHER_MATRIX_LAYERS)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Conv1d, Conv2d or Linear layer to quantize")
    products = _attention_tensors(model) if policy.attention else {}
    if policy.attention and not products:
        raise ValueError(
            f"{type(model).__name__} has no attention whose products can be quantized (quant.AttentionProducts); "
            "leave the policy's attention off"
        )
    rules = policy.rules([*layers, *products])
    for name, layer in layers.items():
        if type(layer) not in QUANTIZED_FORM and not rules[name].is_float:
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}, which has no quantized form; "
                f'keep it in float with the policy layers={{"{name}": "fp"}}'
            )
        if type(layer) in QUANTIZED_FORM and rules[name].weight != FLOAT_BITS:
            check_groups(name, layer.get_parameter("weight")[0].numel(), rules[name].granularity)
        if type(layer) is nn.Linear and rules[name].smooth and rules[name].activation_range == "per_token":
            raise ValueError(
                f"layer {name!r} is to be smoothed, which serves static ranges, but has a range for each token; "
                f'choose one of them for it, such as the policy layers={{"{name}": "/static/smooth"}}'
            )
    mode = Mode(policy)
    for name, layer in layers.items():
        if type(layer) in QUANTIZED_FORM:
            layer.__class__ = QUANTIZED_FORM[type(layer)]  # type: ignore[assignment]
            assert isinstance(layer, QuantLayer)
            layer.attach(rules[name], mode, layer.weight.device)
    device = next(model.parameters()).device
    for name, tensor in products.items():
        tensor.__class__ = QUANTIZED_TENSOR[type(tensor)]  # type: ignore[assignment]
        assert isinstance(tensor, QuantActivation)
        tensor.attach(rules[name], mode, device)
    return model


def unprepare(model: Model) -> Model:
    """The way back: the layers of a prepared model, in place, become what they were, to be prepared anew.

    Names and Parameters stay; ranges, shifts and learned steps are lost.

    Raises:
        ValueError: the model is not prepared.

    Example:
        >>> import quant, torch
        >>> type(quant.unprepare(quant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2))))[0]).__name__
        'Linear'
    """
    for activation in quant_activations(model).values():
        activation.detach()
        activation.__class__ = _ORIGINAL_FORM[type(activation)]  # type: ignore[assignment]
    return model


def _attention_tensors(model: nn.Module) -> dict[str, nn.Module]:
    attentions = [(name, module) for name, module in model.named_modules() if isinstance(module, AttentionProducts)]
    return {f"{name}.{child}": tensor for name, module in attentions for child, tensor in module.named_children()}


def quant_activations(model: nn.Module) -> dict[str, QuantActivation]:
    """Everything in a model that has an activation range, by name, in the order of registration.

    Raises:
        ValueError: the model is not prepared.
    """
    activations = {name: module for name, module in model.named_modules() if isinstance(module, QuantActivation)}
    if not activations:
        raise ValueError(f"{type(model).__name__} is not prepared: call quant.prepare(model) first")
    return activations


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of a model, those with a weight, by name, in the order of registration.

    Raises:
        ValueError: the model is not prepared.
    """
    return {name: layer for name, layer in quant_activations(model).items() if isinstance(layer, QuantLayer)}


def policy_of(model: nn.Module) -> Policy:
    """The policy that a prepared model runs under."""
    return next(iter(quant_layers(model).values())).mode.policy


@contextmanager
def at(model: nn.Module, bit_width: str | BitWidth, reuse_weights: bool = False) -> Iterator[None]:
    """Inside, the prepared model (and each prepared part of it) runs at a bit-width.

    It does so in the thread (or asyncio task) that is inside; to others it is what it was, so that threads may run one
    model at different bit-widths at once.

    Args:
        model: prepared, or a parent of prepared models.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        reuse_weights: quantize each weight only once inside; right as long as no weight changes there.

    Raises:
        ValueError: unknown bit-width, a model that is not prepared, or one with steps learned at another bit-width.
        NotCalibratedError: activations are to be quantized and a layer's range was never observed.

    Example:
        >>> import quant, torch
        >>> model = quant.quantize(torch.nn.Linear(4, 2), [torch.randn(8, 4)], "w8a8", "w2a8")
        >>> with quant.at(model, "w2a8"):
        ...     features = model(torch.randn(1, 4))
        >>> with quant.at(model, "w8a8"):  # the same weights, seen at 8 bits
        ...     features = model(torch.randn(1, 4))
    """
    run = parse_bit_width(bit_width)
    activations = quant_activations(model)
    modes = modes_of(activations)
    for mode in modes:
        if run not in (FULL_PRECISION, mode.learned or run):
            raise ValueError(f"steps were learned at {mode.learned}: the model runs at that and at fp, not at {run}")
    check_calibrated(activations, run)
    with running(modes, bit_width=run, weights={} if reuse_weights else None):
        yield


def modes_of(activations: Mapping[str, QuantActivation]) -> list[Mode]:
    """The modes of prepared models, each once."""
    return list({id(layer.mode): layer.mode for layer in activations.values()}.values())


def check_calibrated(activations: Mapping[str, QuantActivation], run: BitWidth) -> None:
    """Raise NotCalibratedError where a range that a run needs was never observed."""
    for name, activation in activations.items():
        bits = activation.bits_at(run).activation
        if bits == FLOAT_BITS or bits in activation.calibrated or not activation.has_static_range:
            continue
        if not torch.isfinite(activation.activation_max - activation.activation_min)[row_of(bits)]:
            raise NotCalibratedError(
                f"layer {name!r} has no activation range for {run}: run quant.calibrate(model, batches) first"
            )
        activation.calibrated |= {bits}
