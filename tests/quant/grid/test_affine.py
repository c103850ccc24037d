import numpy as np
import pytest
import torch

from quant import (
    activation_qparams,
    dequantize,
    fake_quantize_activation,
    fake_quantize_weight,
    integer_range,
    quantize_weight,
    weight_scale,
)
from quant.grid.affine import quantize


def numpy_weight_integers(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The published grid, written once more: s = max|w| / ((2^b - 1) / 2), half to even."""
    flat = weight.reshape(len(weight), -1)
    scale = np.abs(flat).max(axis=1) * np.float32(2) / np.float32(2**bits - 1)
    integers = np.clip(np.rint(flat / scale[:, None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return integers.reshape(weight.shape), scale


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 3), (4, 3, 3, 3)])
def test_weight_integers_equal_the_formula_and_fake_quantization_is_their_value(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    integers, scale = quantize_weight(weight, bits)
    expected, expected_scale = numpy_weight_integers(weight.numpy(), bits)
    assert np.array_equal(integers.numpy(), expected)
    assert np.array_equal(scale.flatten().numpy(), expected_scale)
    assert torch.equal(fake_quantize_weight(weight, bits), dequantize(integers, scale))


def test_two_bit_grid_is_the_published_one():
    weight = torch.tensor([[3.0, -3.0, 0.9, -1.1]])
    assert quantize_weight(weight, 2)[0].tolist() == [[1, -2, 0, -1]]
    assert torch.allclose(fake_quantize_weight(weight, 2), torch.tensor([[2.0, -4.0, 0.0, -2.0]]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_gradient_equals_straight_through_rounding_written_out(bits):
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    by_output = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    low, high = integer_range(bits, signed=True)

    steps = weight / (weight.abs().amax(dim=1, keepdim=True) * 2 / (2**bits - 1))
    integers = steps + (steps.round() - steps).detach()
    # The ends of the grid belong to it: torch's own clamp gives them no gradient.
    inside = (integers >= low) & (integers <= high)
    naive = torch.where(inside, integers, integers.detach().clamp(low, high)) * (steps / weight).reciprocal()
    naive_gradient = torch.autograd.grad((naive * by_output).sum(), weight)[0]
    fake = fake_quantize_weight(weight, bits)
    assert torch.allclose(fake, naive, atol=1e-6)
    assert torch.allclose(torch.autograd.grad((fake * by_output).sum(), weight)[0], naive_gradient, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_values_equal_torchs_kernel_away_from_the_tie(bits):
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    scale = weight_scale(weight, bits).flatten()
    kernel = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6), 0, *integer_range(bits, signed=True))
    # max|w| / scale is halfway between two integers: the kernel multiplies by 1 / scale and may round it otherwise.
    away = weight.abs() < weight.abs().amax(dim=1, keepdim=True)
    assert away.sum() == 54
    assert torch.allclose(fake_quantize_weight(weight, bits)[away], kernel[away])


def test_all_zero_channel_stays_zero_and_leaves_the_others_quantized():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    quantized = fake_quantize_weight(weight, 4)
    assert torch.equal(quantized[1], torch.zeros(8))
    assert torch.equal(quantized[[0, 2]], fake_quantize_weight(weight[[0, 2]], 4))
    assert not torch.equal(quantized[0], weight[0])


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.0, 4.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_activation_grid_holds_zero_and_agrees_with_quantize(bits, low, high):
    scale, zero_point = activation_qparams(torch.tensor(low), torch.tensor(high), bits)
    assert 0 <= zero_point <= 2**bits - 1
    values = low - 1 + (high - low + 2) * torch.rand(101, generator=torch.Generator().manual_seed(0))
    fake = fake_quantize_activation(values, scale, zero_point, bits)
    integers = quantize(values, scale, zero_point, bits, signed=False)
    assert torch.allclose(fake, dequantize(integers, scale, zero_point))
    assert fake_quantize_activation(torch.zeros(1), scale, zero_point, bits) == 0
    if high > low:
        inside = (values > min(low, 0)) & (values < max(high, 0))
        assert (fake - values)[inside].abs().max() <= scale * 1.001


def test_activation_gradient_is_one_inside_and_zero_outside():
    scale, zero_point = activation_qparams(torch.tensor(-1.0), torch.tensor(2.0), 4)
    values = torch.tensor([-1.5, -0.9, 0.0, 1.9, 2.5], requires_grad=True)
    fake_quantize_activation(values, scale, zero_point, 4).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]


def test_more_bits_are_never_further_from_the_weight():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    errors = [(fake_quantize_weight(weight, bits) - weight).square().mean() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
