"""Scale, zero point, rounding and its gradient: pure functions that training, evaluation and export share.

| what | granularity | grid | shape of scale |
| --- | --- | --- | --- |
| weight (out, in, ...) | per output channel, symmetric | signed, zero_point 0 | (out, 1, ...) |
| activation (any) | per tensor, asymmetric | unsigned | () |
"""

import torch
from torch import Tensor

# Keeps an all-zero channel or tensor on a finite grid: it quantizes to zeros and stays quantized.
SMALLEST_SCALE = 1e-12


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of `bits` bits: (-2^(b-1), 2^(b-1) - 1), or (0, 2^b - 1)."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Symmetric min-max scale of each output channel, differentiable.

    max|w| / ((2^bits - 1) / 2), as SSQL publishes it (Cao et al. 2022, Sec. 3.1, and its reference code).

    Args:
        weight: shape (out, in, ...).
        bits: 2 to 8.

    Returns:
        shape (out, 1, ...).
    """
    largest = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    return (largest * 2 / (2**bits - 1)).clamp_min(SMALLEST_SCALE)


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


def quantize_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers and scale of a weight, as every export stores them.

    Args:
        weight: shape (out, in, ...).
        bits: 2 to 8.

    Returns:
        int8 integers, shape (out, in, ...); scale, shape (out, 1, ...).
    """
    weight = weight.detach()
    scale = weight_scale(weight, bits)
    return quantize(weight, scale, 0, bits, signed=True), scale


def fake_quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """The weight on its grid; rounding is passed straight through, clamping and scale are differentiated.

    The scale is not detached (as published): each channel's largest weight also receives the sum of
    the channel's rounding residuals.

    Args:
        weight: shape (out, in, ...).
        bits: 2 to 8.
    """
    low, high = integer_range(bits, signed=True)
    result: Tensor = _FakeQuantize.apply(weight, weight_scale(weight, bits), low, high)
    return result


def fake_quantize_activation(values: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The tensor on its unsigned grid, by torch's fused kernel.

    The gradient is 1 inside the range and 0 outside; none flows into the range (as published).

    Args:
        values: any shape, float32 or bfloat16.
        scale: shape (), float32.
        zero_point: shape (), int32.
        bits: 2 to 8.
    """
    low, high = integer_range(bits, signed=False)
    return torch.fake_quantize_per_tensor_affine(values, scale.detach(), zero_point, low, high)


class _FakeQuantize(torch.autograd.Function):
    """Symmetric fake quantization that keeps no extra tensor for its backward pass.

    torch's learnable kernel has these numbers too, but reads its zero points back to the host at every call.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, scale)
        ctx.range = low, high
        return (weight / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def,override]
        weight, scale = ctx.saved_tensors
        low, high = ctx.range
        steps = weight / scale
        rounded = steps.round()
        inside = (rounded >= low) & (rounded <= high)
        # d(scale * q)/d(scale) = q - w/scale inside the range (straight through), low or high outside.
        by_scale = rounded.clamp_(low, high).sub_(steps.mul_(inside)).mul_(gradient)
        channels = tuple(range(1, weight.dim()))
        return gradient * inside, by_scale.sum(dim=channels, keepdim=True), None, None
