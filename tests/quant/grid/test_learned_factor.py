import numpy as np
import pytest
import torch

from quant.grid.learned_factor import fake_quantize_factored


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_and_gradients_against_their_definition(bits):
    drawn = np.random.default_rng(0)
    values, scale = drawn.standard_normal((3, 40)), np.array([[0.3], [0.05], [0.7]])
    factor, weights = np.array([[1.0], [0.9], [1.2]]), drawn.standard_normal((3, 40))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    integers = np.clip(np.round(values / scale), low, high)
    inside = (np.round(values / scale) >= low) & (np.round(values / scale) <= high)
    given, by = (torch.tensor(each, dtype=torch.float32, requires_grad=True) for each in (values, factor))
    found = fake_quantize_factored(given, torch.tensor(scale, dtype=torch.float32), by, bits)
    np.testing.assert_allclose(found.detach().numpy(), integers * scale * factor, rtol=1e-5, atol=1e-7)
    (found * torch.tensor(weights, dtype=torch.float32)).sum().backward()
    np.testing.assert_allclose(given.grad.numpy(), weights * factor * inside, rtol=1e-5)
    np.testing.assert_allclose(
        by.grad.numpy(), (weights * integers * scale).sum(1, keepdims=True), rtol=1e-4, atol=1e-4
    )
