import numpy as np
import pytest
import torch

from quant import dequantize, integer_range
from quant.grid.affine import quantize
from quant.grid.lsq import fake_quantize_learned


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_values_and_gradients_equal_lsqs_equations_written_out(bits, signed):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(5, 12, generator=generator, requires_grad=True)
    by_output = torch.randn(5, 12, generator=generator)
    shape = (5, 1) if signed else ()
    step = (torch.rand(shape, generator=generator) * 3 / 2**bits + 0.5 / 2**bits).requires_grad_()
    zero_point = 0 if signed else torch.tensor(2 ** (bits - 1) - 1)
    fake = fake_quantize_learned(values, step, zero_point, bits, signed, count=12)
    assert torch.equal(fake, dequantize(quantize(values, step, zero_point, bits, signed), step, zero_point))

    v, s, g = values.detach().numpy(), np.broadcast_to(step.detach().numpy(), (5, 1)), by_output.numpy()
    low, high = (end - int(zero_point) for end in integer_range(bits, signed))
    rounded = np.rint(v / s)
    inside = (rounded >= low) & (rounded <= high)
    by_step = np.where(inside, rounded - v / s, np.clip(rounded, low, high)) * g
    by_step = by_step.sum(axis=1, keepdims=True) if signed else by_step.sum()
    by_step = by_step / np.sqrt(12 * integer_range(bits, signed)[1])
    found_values, found_step = torch.autograd.grad((fake * by_output).sum(), [values, step])
    assert np.allclose(found_values, g * inside)
    assert np.allclose(found_step, by_step, rtol=1e-4, atol=1e-5)
    assert not inside.all()


def test_a_negative_step_stays_finite():
    fake = fake_quantize_learned(torch.randn(3, 4), torch.tensor(-1.0), 0, 4, True, count=4)
    assert fake.abs().max() < 1e-10


def test_bfloat16_keeps_its_type():
    values = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    fake = fake_quantize_learned(values, step, 0, 4, True, count=4)
    fake.sum().backward()
    assert fake.dtype == values.grad.dtype == torch.bfloat16
    assert step.grad.dtype == torch.float32
