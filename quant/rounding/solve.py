"""Integers and scales of one weight matrix that keep its products with data, not its numbers, close."""

import torch
from torch import Tensor

from quant.bits import INTEGER_BITS
from quant.grid.affine import SMALLEST_SCALE, integer_range

# Fractions of a row's largest magnitude that the search for a scale tries.
FRACTIONS = tuple(1 - k / 50 for k in range(30))
# Share of the mean variance that is added to each: keeps channels that never vary from taking any number.
DAMPING = 0.01
# Columns whose errors are passed on to the rest at once.
COLUMNS = 128
# Rounds of coordinate descent after GPTQ. On Whisper tiny.en at w2a8 more of them gain nothing: experiments/whisper/.
DESCENTS = 4


def round_for_outputs(target: Tensor, moment: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Integers and scales that make tr((Q - T) M (Q - T)^T) small, Q = integers * scale, T the target.

    GPTQ (Frantar et al. 2023, Algorithm 1, columns by falling variance), on scales at which each column, rounded by
    itself, would cost least with the columns that follow making up for it. Then scales and integers take their best
    values in turns, the others given: coordinate descent, as in QuantEase (Behdin et al. 2023, Algorithm 2).

    Args:
        target: shape (rows, inputs), the weight that would be best without a grid.
        moment: shape (inputs, inputs), second moment or covariance of the inputs.
        bits: 2 to 8.
        group: neighbouring inputs that share a scale; it divides the inputs.

    Returns:
        int8 integers, shape (rows, inputs); scale, shape (rows, inputs / group), float32, also below zero: see
        `first_scale`.
    """
    moment = moment.double()
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    moment = (moment / mean).float()
    moment.diagonal().add_(DAMPING)
    order = moment.diagonal().argsort(descending=True)
    back = order.argsort()
    factor = inverse_factor(moment[order][:, order])
    scale = first_scale(target, factor.diagonal()[back].square().reciprocal(), bits, group)
    columns = torch.arange(target.shape[1], device=target.device) // group
    steps = scale[:, columns]
    integers = gptq(target[:, order], factor, steps[:, order], bits)[:, back]
    scale = best_scale(integers, target, moment, scale)
    for _ in range(DESCENTS):
        integers = descend(integers, scale, target, moment, bits)
        scale = best_scale(integers, target, moment, scale)
    return integers.to(torch.int8), scale


def inverse_factor(moment: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of a positive definite matrix, float32."""
    lower = torch.linalg.cholesky(moment.double())
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def first_scale(target: Tensor, costs: Tensor, bits: int, group: int) -> Tensor:
    """The scale of each row and group with the least error when each weight is rounded by itself.

    The grid has one integer more below zero than above: where a group's weights reach further above, its scale is
    below zero, as in llama.cpp's Q4_0. At 8 bits that would gain a 256th, and scales are above zero.

    Args:
        target: shape (rows, inputs).
        costs: shape (inputs,), of a squared error of one in each column.
        bits: 2 to 8.
        group: neighbouring inputs that share a scale.

    Returns:
        shape (rows, inputs / group).
    """
    low, high = integer_range(bits, signed=True)
    grouped, costs = target.unflatten(1, (-1, group)), costs.view(-1, group)
    full = (grouped.abs().amax(dim=2, keepdim=True) / ((high - low) / 2)).clamp_min(SMALLEST_SCALE)
    best, least = full, torch.full_like(full, torch.inf)
    signs = (1,) if bits == max(INTEGER_BITS) else (1, -1)
    for fraction in [sign * fraction for sign in signs for fraction in FRACTIONS]:
        scale = full * fraction
        error = ((grouped / scale).round().clamp(low, high) * scale - grouped).square().mul(costs).sum(2, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(2)


def gptq(target: Tensor, factor: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Integers column by column, each column's error made up for by those that follow.

    Args:
        target: shape (rows, inputs).
        factor: shape (inputs, inputs), from `inverse_factor`.
        steps: shape (rows, inputs), the scale of each weight.
        bits: 2 to 8.
    """
    low, high = integer_range(bits, signed=True)
    rest, integers = target.clone(), torch.empty_like(target)
    for start in range(0, target.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        inner, values = factor[part, part], rest[:, part].clone()
        errors = torch.empty_like(values)
        for j in range(values.shape[1]):
            step = steps[:, start + j]
            integers[:, start + j] = (values[:, j] / step).round().clamp(low, high)
            errors[:, j] = (values[:, j] - integers[:, start + j] * step) / inner[j, j]
            values[:, j:] -= errors[:, j : j + 1] * inner[j, j:]
        rest[:, start + COLUMNS :] -= errors @ factor[part, start + COLUMNS :]
    return integers


def descend(integers: Tensor, scale: Tensor, target: Tensor, moment: Tensor, bits: int) -> Tensor:
    """Each column's integers in turn take the values that are best with all others as they are.

    Args:
        integers: shape (rows, inputs), float.
        scale: shape (rows, groups).
        target: shape (rows, inputs).
        moment: shape (inputs, inputs).
        bits: 2 to 8.

    Returns:
        shape (rows, inputs), float: an error tr((Q - T) M (Q - T)^T) that is not larger.
    """
    low, high = integer_range(bits, signed=True)
    steps = scale.repeat_interleave(integers.shape[1] // scale.shape[1], dim=1)
    gradient, improved = (integers * steps - target) @ moment, integers.clone()
    for start in range(0, integers.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        inner, own = moment[part, part], gradient[:, part].clone()
        moved = torch.empty_like(own)
        for j in range(own.shape[1]):
            column, step = improved[:, start + j], steps[:, start + j]
            best = (column - own[:, j] / (inner[j, j] * step)).round().clamp(low, high)
            moved[:, j] = (best - column) * step
            improved[:, start + j] = best
            own += moved[:, j : j + 1] * inner[j]
        gradient += moved @ moment[part]
    return improved


def best_scale(integers: Tensor, target: Tensor, moment: Tensor, scale: Tensor) -> Tensor:
    """The scales, group after group, that are best for the integers; each stays on its side of zero.

    Args:
        integers: shape (rows, inputs), float.
        target: shape (rows, inputs).
        moment: shape (inputs, inputs).
        scale: shape (rows, groups), the scales so far.
    """
    group = integers.shape[1] // scale.shape[1]
    scale = scale.clone()
    gradient = (integers * scale.repeat_interleave(group, dim=1) - target) @ moment
    for index in range(scale.shape[1]):
        part = slice(index * group, (index + 1) * group)
        own = integers[:, part]
        curvature = (own @ moment[part, part] * own).sum(dim=1)
        change = -(gradient[:, part] * own).sum(dim=1) / curvature.clamp_min(SMALLEST_SCALE)
        same_side = (scale[:, index] + change) * scale[:, index].sign() > SMALLEST_SCALE
        change = torch.where(same_side, change, torch.zeros_like(change))
        scale[:, index] += change
        gradient += (change.unsqueeze(1) * own) @ moment[part]
    return scale
