"""Mixed bit-widths found from the model itself: what each layer costs at few bits, and a policy within a budget."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quant.bits import FLOAT_BITS, INTEGER_BITS, BitWidth
from quant.layers import QuantLayer
from quant.policy import Policy
from quant.prepare import at, quant_activations, quant_layers
from quant.weights import as_rows

Forward = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Sensitivity:
    """What one layer's weight costs the model's output at one bit-width, all else in full precision.

    Attributes:
        layer: name.
        bits: of the weight.
        error: squared error of the output, as a fraction of the output's variance over the batches.
        size: of the weight's packed integers and float32 scales, in bytes.
    """

    layer: str
    bits: int
    error: float
    size: float


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8),
) -> list[Sensitivity]:
    """One row for each layer and bit-width, in evaluation mode.

    Layers whose weight the policy holds at fixed bits are left out.

    Args:
        model: prepared; no calibration is needed.
        batches: what `forward` takes; kept in memory.
        forward: runs the model on one batch and returns one tensor, such as embeddings (batch, dim); the model
            itself by default.
        bits: to try, each from 2 to 8.

    Raises:
        ValueError: no batch, bits that no grid has, or a model that is not prepared or has no layer left to choose for.
    """
    batches, run = list(batches), forward or model
    if not batches:
        raise ValueError("sensitivity got no batch: give at least one")
    if not bits or not set(bits) <= set(INTEGER_BITS):
        raise ValueError(f"bits to try must be from 2 to 8, got {list(bits)}")
    free = {name: layer for name, layer in quant_layers(model).items() if layer.rule.weight is None}
    if not free:
        raise ValueError("the policy fixes the weight bits of every layer: there is nothing to choose")
    training = model.training
    model.eval()
    try:
        exact = _outputs(run, batches)
        variance = (exact - exact.mean(dim=0)).square().mean()
        rows = []
        for name, layer in free.items():
            for b in sorted(bits):
                with _alone(model, layer, b):
                    error = (_outputs(run, batches) - exact).square().mean() / variance
                rows.append(Sensitivity(name, b, float(error), weight_bytes(layer, b)))
        return rows
    finally:
        model.train(training)


def weight_bytes(layer: QuantLayer, bits: int) -> float:
    """Bytes of a layer's weight at a bit-width: packed integers and their float32 scales."""
    return layer.weight.numel() * bits / 8 + 4 * len(as_rows(layer.weight, layer.rule.granularity))


def policy_within(
    model: nn.Module, rows: Iterable[Sensitivity], average_bits: float | None = None, size: float | None = None
) -> Policy:
    """The model's policy with weight bits for each layer, chosen greedily within a budget.

    Every layer starts at its most bits; while the budget is exceeded, the layer whose error grows least for each
    byte it saves goes one step down. Errors of layers are taken to add up.

    Args:
        model: prepared; its policy is what the result starts from.
        rows: from `sensitivities`.
        average_bits: budget in bits of a weight, scales left out, averaged over the weights of the layers in `rows`.
        size: budget in bytes, scales included, of the layers in `rows`.

    Returns:
        a policy to prepare the model with anew (`unprepare` first).

    Raises:
        ValueError: not exactly one budget, or one that the fewest bits exceed.
    """
    if (average_bits is None) == (size is None):
        raise ValueError("give one budget: average_bits or size")
    layers = quant_layers(model)
    options: dict[str, list[Sensitivity]] = {}
    for row in sorted(rows, key=lambda row: -row.bits):
        options.setdefault(row.layer, []).append(row)
    weights = sum(layers[name].weight.numel() for name in options)

    def used() -> float:
        chosen = [left[0] for left in options.values()]
        if average_bits is None:
            return sum(row.size for row in chosen)
        return sum(row.bits * layers[row.layer].weight.numel() for row in chosen) / weights

    budget = size if average_bits is None else average_bits
    while budget is not None and used() > budget:
        steps = [(_error_per_byte(*left[:2]), name) for name, left in options.items() if len(left) > 1]
        if not steps:
            unit = "bytes" if average_bits is None else "bits on average"
            raise ValueError(f"the fewest bits that were tried take {used():.6g} {unit}, over the budget of {budget}")
        options[min(steps)[1]].pop(0)
    policy = next(iter(layers.values())).mode.policy
    chosen = {name: _override(layers[name], left[0].bits, policy) for name, left in options.items()}
    kept = {pattern: text for pattern, text in policy.layers.items() if pattern not in chosen}
    return replace(policy, layers=kept | chosen)


def _error_per_byte(now: Sensitivity, below: Sensitivity) -> float:
    return (below.error - now.error) / (now.size - below.size)


def _override(layer: QuantLayer, bits: int, policy: Policy) -> str:
    rule = layer.rule
    activation = "" if rule.activation is None else f"a{rule.activation}"
    granularity = "" if rule.granularity == policy.granularity else f"/{rule.granularity}"
    return f"w{bits}{activation}{granularity}"


def _outputs(run: Forward, batches: list[Any]) -> Tensor:
    """Outputs of all batches, (examples, values)."""
    outputs = [run(batch) for batch in batches]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise ValueError("sensitivity needs one tensor from each batch, such as embeddings: give `forward`")
    return torch.cat([output.float().flatten(1) for output in outputs])


@contextmanager
def _alone(model: nn.Module, layer: QuantLayer, bits: int) -> Iterator[None]:
    """Inside, this layer's weight runs at a bit-width, and all else in float."""
    activations = quant_activations(model)
    before = {name: activation.rule for name, activation in activations.items()}
    for activation in activations.values():
        activation.rule = replace(activation.rule, weight=FLOAT_BITS, activation=FLOAT_BITS)
    layer.rule = replace(layer.rule, weight=bits)
    try:
        with at(model, BitWidth(bits, FLOAT_BITS), reuse_weights=True):
            yield
    finally:
        for name, activation in activations.items():
            activation.rule = before[name]
