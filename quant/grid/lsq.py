"""Fake quantization with a learned step size (LSQ, Esser et al., ICLR 2020)."""

import math
from typing import Any

import torch
from torch import Tensor

from quant.grid.affine import SMALLEST_SCALE, integer_range
from quant.grid.weights import straight_through


def gradient_scale(count: int, bits: int, signed: bool) -> float:
    """1 / sqrt(count * q_max): keeps a step's updates in proportion to the weights' (Sec. 2.2).

    Args:
        count: values of a weight that share the step, or features of one clip or image.
        bits: 2 to 8.
        signed: whether the grid is that of weights.
    """
    return 1 / math.sqrt(count * integer_range(bits, signed)[1])


def fake_quantize_learned(
    values: Tensor, step: Tensor, zero_point: Tensor | int, bits: int, signed: bool, count: int
) -> Tensor:
    """Values on the grid of a learned step; the same numbers as `quantize` and `dequantize`.

    Rounding is passed straight through: a value's gradient is 1 inside the grid and 0 outside, its share of the
    step's is round(v / s) - v / s inside and the end of the grid outside (Eq. 3), times `gradient_scale`.

    Args:
        values: any shape, float32 or bfloat16; for a step of shape (rows, 1, ...): (rows, ...).
        step: float32, shape () or (rows, 1, ...); one that learning has made negative acts as the smallest scale.
        zero_point: a number, or of shape ().
        bits: 2 to 8.
        signed: whether the grid is signed.
        count: values that share the step: see `gradient_scale`.
    """
    low, high = (end - zero_point for end in integer_range(bits, signed))
    result: Tensor = _FakeQuantizeLearned.apply(values, step, low, high, gradient_scale(count, bits, signed))
    return result


class _FakeQuantizeLearned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: Any, high: Any, by_step_scale: float) -> Tensor:
        step = step.clamp_min(SMALLEST_SCALE)
        ctx.save_for_backward(values, step)
        ctx.low, ctx.high, ctx.by_step_scale = low, high, by_step_scale
        return (values.float() / step).round_().clamp_(low, high).mul_(step).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        values, step = ctx.saved_tensors
        by_values, by_step = straight_through(gradients[0].float(), values.float() / step, ctx.low, ctx.high)
        by_step = by_step.sum_to_size(step.shape) * ctx.by_step_scale
        return by_values.to(values.dtype), by_step, None, None, None
