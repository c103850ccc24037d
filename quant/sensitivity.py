"""Mixed bit-widths found from the model itself: what each layer costs at few bits, and a policy within a budget."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quant.bits import FLOAT_BITS, INTEGER_BITS, BitWidth, parse_bit_width
from quant.grid.weights import as_rows
from quant.layers import QuantLayer
from quant.policy import SMOOTH, Policy
from quant.prepare import at, quant_activations, quant_layers

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
        ValueError: no batch, bits that no grid has, a model that is not prepared or has no layer left to choose for, or
            outputs that are the same for all examples, or not finite.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> rows = quant.sensitivities(model, [torch.randn(8, 4)])
        >>> sorted({row.layer for row in rows})
        ['2']
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
        if not 0 < variance < torch.inf:
            raise ValueError(
                f"sensitivity is in units of the outputs' variance, which is {variance:g} over {len(exact)} examples: "
                "give more than one, with finite outputs that differ"
            )
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


def model_bytes(model: nn.Module, bit_width: str | BitWidth) -> float:
    """Bytes of a prepared model's Parameters at a bit-width: packed weights with their scales, all else float32.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Linear(256, 256, bias=False), quant.Policy(first_layer="w4a8"))
        >>> round(quant.model_bytes(model, "w4a8") / quant.model_bytes(model, "fp"), 2)  # 4 bits of 32, and the scales
        0.13
    """
    run, layers = parse_bit_width(bit_width), quant_layers(model)
    packed = [(layer, bits) for layer in layers.values() if (bits := layer.bits_at(run).weight) != FLOAT_BITS]
    rest = sum(p.numel() for p in model.parameters()) - sum(layer.weight.numel() for layer, _ in packed)
    return 4 * rest + sum(weight_bytes(layer, bits) for layer, bits in packed)


def policy_within(model: nn.Module, rows: Iterable[Sensitivity], average_bits: float) -> Policy:
    """The model's policy with weight bits for each layer: the least sum of the layers' errors within a budget.

    Args:
        model: prepared; its policy is what the result starts from.
        rows: from `sensitivities`.
        average_bits: budget in bits of a weight, scales left out, averaged over the weights of the layers in `rows`.

    Returns:
        a policy to prepare the model with anew (`unprepare` first).

    Raises:
        ValueError: a budget that the fewest bits exceed.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> policy = quant.policy_within(model, quant.sensitivities(model, [torch.randn(8, 4)]), 4)
        >>> model = quant.prepare(quant.unprepare(model), policy)
    """
    layers = quant_layers(model)
    options: dict[str, list[Sensitivity]] = {}
    for row in rows:
        options.setdefault(row.layer, []).append(row)
    weights = sum(layers[name].weight.numel() for name in options)
    costs = [[row.bits * layers[name].weight.numel() for row in group] for name, group in options.items()]
    least = sum(min(group) for group in costs) / weights
    if least > average_bits:
        raise ValueError(
            f"the fewest bits that were tried take {least:g} bits on average, over the budget of {average_bits:g}"
        )
    errors = [[row.error for row in group] for group in options.values()]
    picks = least_error(errors, costs, int(average_bits * weights))
    policy = next(iter(layers.values())).mode.policy
    chosen = {
        name: _override(layers[name], group[pick].bits, policy)
        for (name, group), pick in zip(options.items(), picks, strict=True)
    }
    kept = {pattern: text for pattern, text in policy.layers.items() if pattern not in chosen}
    return replace(policy, layers=kept | chosen)


def least_error(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> list[int]:
    """One option of each group, with the least sum of errors at a sum of costs within the budget.

    The multiple-choice knapsack problem by dynamic programming; exact unless the costs' greatest common divisor is
    below 1 / 65,536 of the budget, where costs are rounded up to that.

    Args:
        errors: of each option of each group.
        costs: of the same options; the cheapest ones fit the budget.
        budget: at least 1.

    Returns:
        index of the option of each group.
    """
    unit = max(math.gcd(*(cost for group in costs for cost in group)), budget // 2**16, 1)
    capacity = budget // unit
    # least[c]: the least error of the groups so far at a cost of up to c units.
    least = torch.zeros(capacity + 1, dtype=torch.float64)
    picks = []
    for group_errors, group_costs in zip(errors, costs, strict=True):
        totals = torch.full((len(group_errors), capacity + 1), torch.inf, dtype=torch.float64)
        for option, (error, cost) in enumerate(zip(group_errors, group_costs, strict=True)):
            units = -(-cost // unit)
            totals[option, units:] = least[: max(capacity + 1 - units, 0)] + error
        least, pick = totals.min(dim=0)
        picks.append(pick)
    if least[capacity].isinf():  # only rounding keeps the cheapest options out of the budget
        return [min(range(len(group)), key=group.__getitem__) for group in costs]
    chosen = []
    for pick, group_costs in zip(reversed(picks), reversed(costs), strict=True):
        chosen.append(int(pick[capacity]))
        capacity -= -(-group_costs[chosen[-1]] // unit)
    return chosen[::-1]


def _override(layer: QuantLayer, bits: int, policy: Policy) -> str:
    rule = layer.rule
    activation = "" if rule.activation is None else f"a{rule.activation}"
    granularity = "" if rule.granularity == policy.granularity else f"/{rule.granularity}"
    own_range = "" if rule.activation_range == policy.activation_range else f"/{rule.activation_range}"
    smooth = f"/{SMOOTH}" if rule.smooth and not policy.smooth else ""
    return f"w{bits}{activation}{granularity}{own_range}{smooth}"


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
    # Corrections and chosen integers are of whole runs, not of this one layer.
    layers = quant_layers(model)
    of_runs = {name: (each.corrected, each.rounded) for name, each in layers.items()}
    for each in layers.values():
        each.corrected = each.rounded = ()
    try:
        with at(model, BitWidth(bits, FLOAT_BITS), reuse_weights=True):
            yield
    finally:
        for name, each in layers.items():
            each.corrected, each.rounded = of_runs[name]
        for name, activation in activations.items():
            activation.rule = before[name]
