"""Fake quantization of activations on a GPU: one kernel forward, one backward, the numbers of `quant.grid.affine`."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
# Adding and taking off 1.5 * 2^23 rounds a float32 below 2^22 to an integer, halves to even.
ROUND = tl.constexpr(12_582_912.0)


@triton.jit
def _fake_quantize(values, quantized, scale, zero_point, top, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = index < count
    step, zero = tl.load(scale), tl.load(zero_point).to(tl.float32)
    steps = tl.div_rn(tl.load(values + index, mask=there).to(tl.float32), step)
    # The bounds are integers: clamping before rounding is clamping after it.
    steps = tl.clamp(steps, -zero, top - zero, propagate_nan=tl.PropagateNan.ALL)
    tl.store(quantized + index, (steps + ROUND - ROUND) * step, mask=there)


@triton.jit
def _pass_inside(gradient, values, passed, scale, zero_point, top, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = index < count
    step, zero = tl.load(scale), tl.load(zero_point).to(tl.float32)
    value = tl.load(values + index, mask=there).to(tl.float32)
    inside = (value > (-0.5 - zero) * step) & (value < (top + 0.5 - zero) * step)
    tl.store(passed + index, tl.where(inside, tl.load(gradient + index, mask=there), 0.0), mask=there)


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Values on their unsigned grid, in the dtype and layout of values; see `quant.fake_quantize_activation`."""
    values, quantized = _dense(values)
    _launch(_fake_quantize, values, quantized, scale, zero_point, bits)
    return quantized


def pass_inside(gradient: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The gradient where values round to an integer of the grid, 0 elsewhere."""
    values, like = _dense(values)
    gradient = torch.empty_like(like, dtype=gradient.dtype).copy_(gradient)
    passed = torch.empty_like(gradient)
    _launch(_pass_inside, gradient, values, passed, scale, zero_point, bits)
    return passed


def _launch(kernel: Any, *arguments: Any) -> None:
    *tensors, bits = arguments
    count = tensors[0].numel()
    if count:
        kernel[(triton.cdiv(count, BLOCK),)](*tensors, 2**bits - 1, count, block=BLOCK)


def _dense(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values whose elements fill a stretch of memory, in whatever order, and an empty tensor of the same layout."""
    empty = torch.empty_like(values)
    if empty.stride() == values.stride():
        return values, empty
    values = values.contiguous()
    return values, torch.empty_like(values)
