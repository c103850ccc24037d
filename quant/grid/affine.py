"""Scale, zero point, rounding and its gradient: pure functions that training, evaluation and export share.

| what | granularity | grid | shape of scale |
| --- | --- | --- | --- |
| activation (any) | per tensor, asymmetric | unsigned | () |
| activation (..., channels) | per token, asymmetric | unsigned | (..., 1) |
| weight (out, in, ...) | per tensor, symmetric | signed, zero_point 0 | (1, 1, 1, ...), see `quant.grid.weights` |
| | per output channel | | (out, 1, ...) |
| | per group of g inputs | | (out * in * ... / g, 1) |
"""

import torch
from torch import Tensor

# Keeps an all-zero channel or tensor on a finite grid: it quantizes to zeros and stays quantized.
SMALLEST_SCALE = 1e-12


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of `bits` bits: (-2^(b-1), 2^(b-1) - 1), or (0, 2^b - 1)."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def activation_qparams(minimum: Tensor, maximum: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Asymmetric min-max scale and zero point of a tensor, from its observed range.

    Zero is always in the range, so that the zero point is an integer of the grid (ONNX asks for it)
    and padding stays exactly zero.

    Args:
        minimum: shape (), the smallest value seen.
        maximum: shape (), the largest value seen.
        bits: 2 to 8.

    Returns:
        scale, shape (), float32; zero_point, shape (), int32, from 0 to 2^bits - 1.
    """
    low, high = minimum.clamp_max(0), maximum.clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(SMALLEST_SCALE)
    return scale, (-low / scale).round().to(torch.int32)


def token_qparams(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Asymmetric scale and zero point of each token, from its own smallest and largest value.

    Args:
        values: shape (..., channels), float32.
        bits: 2 to 8.

    Returns:
        scale, shape (..., 1), float32; zero_point, shape (..., 1), int32, from 0 to 2^bits - 1.
    """
    low, high = values.aminmax(dim=-1, keepdim=True)
    return activation_qparams(low, high, bits)


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor | int, bits: int, signed: bool) -> Tensor:
    """Integers clamp(round(values / scale) + zero_point), halves to even: ONNX QuantizeLinear.

    Returns:
        shape of `values`, int8 when signed, uint8 otherwise.
    """
    low, high = integer_range(bits, signed)
    integers = (values / scale).round() + zero_point
    return integers.clamp(low, high).to(torch.int8 if signed else torch.uint8)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """(integers - zero_point) * scale, float32: ONNX DequantizeLinear."""
    return (integers.to(torch.float32) - zero_point) * scale


def fake_quantize_activation(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The tensor on its unsigned grid: ONNX QuantizeLinear then DequantizeLinear.

    The gradient is 1 inside the range and 0 outside; none flows into the range (as published).

    Args:
        values: any shape, float32 or bfloat16.
        scale: shape (), float32.
        zero_point: shape (), int32.
        bits: 2 to 8.
    """
    result: Tensor = _FakeQuantizeActivation.apply(values, scale, zero_point, bits)
    return result


def fake_quantize_tokens(values: Tensor, bits: int) -> Tensor:
    """Each token on the unsigned grid of its own range.

    Every value is inside its range: the gradient is 1. None flows into the ranges (as with static ones).

    Args:
        values: shape (..., channels), float32 or bfloat16.
        bits: 2 to 8.
    """
    result: Tensor = _FakeQuantizeTokens.apply(values, bits)
    return result


class _FakeQuantizeTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, bits: int) -> Tensor:  # type: ignore[no-untyped-def]
        floats = values.float()
        scale, zero_point = token_qparams(floats, bits)
        low, high = 0 - zero_point, 2**bits - 1 - zero_point
        return (floats / scale).round_().clamp_(low, high).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def,override]
        return gradient, None


class _FakeQuantizeActivation(torch.autograd.Function):
    """QuantizeLinear and DequantizeLinear in place, one pass backward: on a CPU a tenth of torch's kernel's time."""

    @staticmethod
    def forward(ctx, values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(values, scale, zero_point)
        ctx.bits = bits
        if values.is_cuda:
            from quant.grid.triton_kernels import fake_quantize

            return fake_quantize(values, scale, zero_point, bits)
        # The zero point moves into the bounds: the same integers, two passes fewer.
        low, high = (0 - zero_point).item(), (2**bits - 1 - zero_point).item()
        return (values.float() / scale).round_().clamp_(low, high).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def,override]
        values, scale, zero_point = ctx.saved_tensors
        if values.is_cuda:
            from quant.grid.triton_kernels import pass_inside

            return pass_inside(gradient, values, scale, zero_point, ctx.bits), None, None, None
        # What rounds to an integer of the range is inside: half a step beyond either end.
        low, high = ((-0.5 - zero_point) * scale).item(), ((2**ctx.bits - 0.5 - zero_point) * scale).item()
        return torch.ops.aten.hardtanh_backward(gradient, values, low, high), None, None, None
