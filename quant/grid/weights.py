"""The signed grid of a weight: its scale by granularity and range, its integers, and the gradient through it.

All functions take a weight as rows with one scale each, shape (rows, ...): see `as_rows`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from quant.grid.affine import SMALLEST_SCALE, integer_range, quantize
from quant.grid.clipping import squared_error

Granularity = Literal["per_tensor", "per_channel", "per_group_32", "per_group_64", "per_group_128"]
WeightRange = Literal["min_max", "mse"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
WEIGHT_RANGES: tuple[WeightRange, ...] = get_args(WeightRange)

# Fractions of a row's largest magnitude that the search tries, down to a fifth.
WEIGHT_RATIOS = tuple(2 ** (-k / 5) for k in range(12))
# Weights searched at a time on a CPU: as many as stay in its cache from one fraction to the next.
SEARCHED_AT_ONCE = 2**16


def as_rows(weight: Tensor, granularity: Granularity) -> Tensor:
    """The weight with one row for each scale; a view wherever its layout allows.

    Args:
        weight: shape (out, in, ...).
        granularity: `per_tensor` gives (1, out, in, ...); `per_channel` (out, in, ...), the weight itself;
            `per_group_<g>` (out * in * ... / g, g), groups of neighbours along the inputs.
    """
    if granularity == "per_channel":
        return weight
    return weight.unsqueeze(0) if granularity == "per_tensor" else weight.reshape(-1, group_size(granularity))


def group_size(granularity: Granularity) -> int:
    """Inputs that share a scale in `per_group_<g>`."""
    return int(granularity.removeprefix("per_group_"))


def check_groups(name: str, inputs: int, granularity: Granularity) -> None:
    """Raise ValueError where groups do not divide a layer's inputs: in-channels times kernel."""
    if granularity.startswith("per_group") and inputs % group_size(granularity):
        raise ValueError(
            f"layer {name!r} has {inputs} inputs, which groups of {group_size(granularity)} do not divide; "
            f'give it another granularity with the policy layers={{"{name}": "/per_channel"}}'
        )


def weight_scale(weight: Tensor, bits: int, ratio: Tensor | None = None) -> Tensor:
    """Symmetric scale of each row, differentiable.

    max|w| / ((2^bits - 1) / 2), as SSQL publishes it (Cao et al. 2022, Sec. 3.1, and its reference code).

    Args:
        weight: shape (rows, ...).
        bits: 2 to 8.
        ratio: fraction of max|w| that the range keeps, shape (rows, 1, ...); all of it when None.

    Returns:
        shape (rows, 1, ...).
    """
    largest = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    if ratio is not None:
        largest = largest * ratio
    return (largest * 2 / (2**bits - 1)).clamp_min(SMALLEST_SCALE)


@torch.no_grad()
def best_clip_ratio(weight: Tensor, bits: int) -> Tensor:
    """The fraction of each row's max|w| at which the row's squared error is least, shape (rows, 1, ...).

    Args:
        weight: shape (rows, ...).
        bits: 2 to 8.
    """
    scale = weight_scale(weight, bits)
    flat, flat_scale = weight.flatten(1), scale.flatten(1)
    rows = len(flat) if flat.is_cuda else max(SEARCHED_AT_ONCE // flat.shape[1], 1)
    bounds = integer_range(bits, signed=True)
    best = [
        torch.stack([squared_error(part, part_scale * ratio, *bounds) for ratio in WEIGHT_RATIOS]).argmin(dim=0)
        for part, part_scale in zip(flat.split(rows), flat_scale.split(rows), strict=True)
    ]
    return torch.tensor(WEIGHT_RATIOS, device=weight.device)[torch.cat(best)].view_as(scale)


def quantize_weight(weight: Tensor, bits: int, ratio: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Integers and scale of each row.

    Args:
        weight: shape (rows, ...).
        bits: 2 to 8.
        ratio: fraction of max|w| that the range keeps, shape (rows, 1, ...); all of it when None.

    Returns:
        int8 integers, shape (rows, ...); scale, shape (rows, 1, ...).
    """
    weight = weight.detach()
    scale = weight_scale(weight, bits, ratio)
    return quantize(weight, scale, 0, bits, signed=True), scale


def fake_quantize_weight(weight: Tensor, bits: int, ratio: Tensor | None = None) -> Tensor:
    """The weight on its grid; rounding is passed straight through, clamping and scale are differentiated.

    The scale is not detached (as published): each row's largest weight (the first, of equals) also
    receives the sum of the row's rounding residuals. A ratio is a constant.

    Args:
        weight: shape (rows, ...).
        bits: 2 to 8.
        ratio: fraction of max|w| that the range keeps, shape (rows, 1, ...); all of it when None.
    """
    result: Tensor = (
        _FakeQuantizeWeight.apply(weight, bits)
        if ratio is None
        else _FakeQuantizeClippedWeight.apply(weight, bits, ratio)
    )
    return result


class _FakeQuantizeWeight(torch.autograd.Function):
    """Fake quantization on the min-max grid in as few passes over the weight as its definition allows.

    Only a row's largest weight can be clamped or move the scale: all others have gradient 1.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, bits: int) -> Tensor:  # type: ignore[no-untyped-def]
        low, high = integer_range(bits, signed=True)
        scale = weight_scale(weight, bits)
        quantized = (weight / scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(weight, scale, quantized)
        ctx.bits = bits
        return quantized

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def,override]
        weight, scale, quantized = (tensor.flatten(1) for tensor in ctx.saved_tensors)
        by_weight = gradient.flatten(1).clone()
        index = weight.abs().argmax(dim=1, keepdim=True)
        largest, by_largest = weight.gather(1, index), by_weight.gather(1, index)
        steps = largest / scale
        clamped = steps.round() > integer_range(ctx.bits, signed=True)[1]
        # d(scale * q)/d(scale) = q - w/scale inside the range (straight through), q outside.
        by_scale = (
            torch.linalg.vecdot(by_weight, quantized - weight).unsqueeze(1) / scale + by_largest * steps * clamped
        )
        by_scale *= scale > SMALLEST_SCALE
        by_largest = by_largest * ~clamped + by_scale * largest.sign() * 2 / (2**ctx.bits - 1)
        return by_weight.scatter_(1, index, by_largest).view_as(gradient), None


class _FakeQuantizeClippedWeight(torch.autograd.Function):
    """The same where any weight may be clamped: its own gradient is then 0."""

    @staticmethod
    def forward(ctx, weight: Tensor, bits: int, ratio: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        scale = weight_scale(weight, bits, ratio)
        ctx.save_for_backward(weight, scale, ratio)
        ctx.bits = bits
        return (weight / scale).round_().clamp_(*integer_range(bits, signed=True)).mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def,override]
        weight, scale, ratio = (tensor.flatten(1) for tensor in ctx.saved_tensors)
        flat = gradient.flatten(1)
        by_weight, by_scale = straight_through(flat, weight / scale, *integer_range(ctx.bits, signed=True))
        by_scale = by_scale.sum(dim=1, keepdim=True) * (scale > SMALLEST_SCALE)
        index = weight.abs().argmax(dim=1, keepdim=True)
        by_largest = by_scale * weight.gather(1, index).sign() * ratio * 2 / (2**ctx.bits - 1)
        return by_weight.scatter_add_(1, index, by_largest).view_as(gradient), None, None


def straight_through(gradient: Tensor, steps: Tensor, low: Tensor | int, high: Tensor | int) -> tuple[Tensor, Tensor]:
    """Gradients of scale * clamp(round(steps), low, high), steps = values / scale, with rounding passed through.

    Returns:
        by the values, and each value's share of the gradient by the scale; both of the shape of steps.
    """
    integers = steps.round()
    inside = (integers >= low) & (integers <= high)
    integers = integers.clamp(low, high)  # type: ignore[arg-type]
    return gradient * inside, gradient * torch.where(inside, integers - steps, integers)
