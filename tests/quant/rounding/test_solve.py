"""Rounding for outputs: against the least squares solution found by trying, and against rounding to the nearest."""

import pytest
import torch

from quant.grid.affine import integer_range
from quant.rounding.solve import best_scale, descend, first_scale, gptq, inverse_factor, round_for_outputs


def error(values, target, moment):
    return float((((values - target) @ moment) * (values - target)).sum())


@pytest.fixture
def problem():
    """A weight (8, 64) and the covariance of inputs that depend on each other, as those of real layers do."""
    torch.manual_seed(0)
    inputs = torch.randn(500, 20) @ torch.randn(20, 64) + 0.3 * torch.randn(500, 64)
    return torch.randn(8, 64), (inputs.T @ inputs / 500).contiguous()


@pytest.mark.parametrize("group", [64, 32])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_far_better_than_the_nearest_integers(problem, bits, group):
    weight, moment = problem
    integers, scale = round_for_outputs(weight, moment, bits, group)
    assert integers.dtype == torch.int8 and scale.shape == (8, 64 // group)
    assert (integers.min(), integers.max()) >= (integer_range(bits, True)[0], 0)
    assert integers.max() <= integer_range(bits, True)[1]
    step = weight.abs().amax(dim=1, keepdim=True) * 2 / (2**bits - 1)
    nearest = (weight / step).round().clamp(*integer_range(bits, True)) * step
    chosen = integers * scale.repeat_interleave(group, dim=1)
    assert error(chosen, weight, moment) < 0.35 * error(nearest, weight, moment)


def test_gptq_is_the_published_recursion(problem):
    """Optimal brain quantization of one column after another, each time with the inverse of what is left."""
    weight, moment = problem
    weight, moment = weight[:2, :10], moment[:10, :10] + 0.1 * torch.eye(10)
    steps = torch.full_like(weight, 0.3)
    rest, expected = weight.double().clone(), torch.empty(2, 10, dtype=torch.float64)
    for j in range(10):
        inverse = moment[j:, j:].double().inverse()
        expected[:, j] = (rest[:, j] / 0.3).round().clamp(-8, 7)
        loss = (rest[:, j] - expected[:, j] * 0.3) / inverse[0, 0]
        rest[:, j:] -= loss[:, None] * inverse[0]
    assert torch.equal(gptq(weight, inverse_factor(moment), steps, 4).double(), expected)


def test_the_best_scale_is_that_of_least_squares(problem):
    weight, moment = problem
    integers = (weight * 2).round().clamp(-4, 3)
    scale = best_scale(integers, weight, moment, torch.ones(8, 1))
    products = ((integers @ moment) * weight).sum(1) / ((integers @ moment) * integers).sum(1)
    torch.testing.assert_close(scale[:, 0], products, rtol=1e-4, atol=0)


def test_no_integer_alone_could_be_better_after_the_descent(problem):
    """Against trying every integer of every weight, with all others as they are."""
    weight, moment = problem
    weight, scale = weight[:2], torch.tensor([[0.7, -0.6], [0.8, 0.9]])
    steps = scale.repeat_interleave(32, dim=1)
    integers = (weight / steps).round().clamp(-2, 1)
    for _ in range(50):
        before, integers = error(integers * steps, weight, moment), descend(integers, scale, weight, moment, 2)
        assert error(integers * steps, weight, moment) <= before * (1 + 1e-5)
    assert (integers.min(), integers.max()) == (-2, 1)
    least = error(integers * steps, weight, moment)
    for row in range(2):
        for column in range(64):
            for value in range(-2, 2):
                other = integers.clone()
                other[row, column] = value
                assert error(other * steps, weight, moment) >= least * (1 - 1e-5)


def test_the_wider_side_of_the_grid_is_where_the_weights_reach_further():
    costs = torch.ones(4)
    up, down = torch.tensor([[0.0, 1, 2, -1]]), torch.tensor([[0.0, -1, -2, 1]])
    assert first_scale(up, costs, 2, 4) < 0 < first_scale(down, costs, 2, 4)
    assert first_scale(up, costs, 2, 4) == -first_scale(down, costs, 2, 4)
    assert first_scale(up, costs, 8, 4) > 0  # int8 files have scales above zero, as other tools' do


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_weight_and_its_negative_are_rounded_alike(problem, bits):
    weight, moment = problem
    integers, scale = round_for_outputs(weight, moment, bits, 32)
    others, negative = round_for_outputs(-weight, moment, bits, 32)
    assert torch.equal(integers, others) and torch.equal(scale, -negative)
    assert (scale < 0).any() and (scale > 0).any()


def test_channels_that_never_vary_and_weights_of_zero_stay_finite():
    moment = torch.zeros(32, 32)
    moment[0, 0] = 1
    integers, scale = round_for_outputs(torch.zeros(4, 32), moment, 4, 32)
    assert not integers.any() and torch.isfinite(scale).all()
    integers, scale = round_for_outputs(torch.randn(4, 32), torch.zeros(32, 32), 4, 32)
    assert torch.isfinite(scale).all()
