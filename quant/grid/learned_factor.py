"""Fake quantization whose integers come from one scale, and whose numbers from another that is learned."""

from typing import Any

import torch
from torch import Tensor

from quant.grid.affine import integer_range


def fake_quantize_factored(values: Tensor, scale: Tensor, factor: Tensor, bits: int) -> Tensor:
    """factor * scale * clamp(round(values / scale)), signed, symmetric.

    Rounding is passed straight through: a value's gradient is the factor inside the grid and 0 outside. The factor's is
    exact, since it moves no value to another integer. (A learned step, LSQ, is pushed towards smaller steps by values
    that drift within their cells: from integers chosen on data that loses more than is learned.)

    Args:
        values: shape (rows, ...).
        scale: shape (rows, 1, ...); no gradient flows into it.
        factor: shape (rows, 1, ...).
        bits: 2 to 8.
    """
    result: Tensor = _FakeQuantizeFactored.apply(values, scale, factor, *integer_range(bits, signed=True))
    return result


class _FakeQuantizeFactored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, factor: Tensor, low: int, high: int) -> Tensor:
        integers = (values.float() / scale).round_()
        inside = (integers >= low) & (integers <= high)
        integers.clamp_(low, high)
        ctx.save_for_backward(integers.to(torch.int8), inside, scale, factor)
        return integers.mul_(scale * factor).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        integers, inside, scale, factor = ctx.saved_tensors
        gradient = gradients[0].float()
        by_factor = (gradient * integers).sum_to_size(factor.shape) * scale
        return (gradient * factor * inside).to(gradients[0].dtype), None, by_factor, None, None
