from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from two_ranks import on_two_ranks

import quant

SIZES = torch.tensor([30.0, 3.0, 5.0, 2.0, 8.0, 0.0])
POLICIES = [{"smooth": True}, {"smooth": True, "shift": True}]


def smoothing(**policy) -> nn.Sequential:
    torch.manual_seed(0)
    return quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("w8", **policy))


def uneven(*shape: int, seed: int = 0) -> torch.Tensor:
    """Channels of very different sizes, around 0.2; the last one is never used."""
    values = SIZES * torch.randn(*shape, 6, generator=torch.Generator().manual_seed(seed))
    return values + 0.2 * (SIZES > 0)


def spread_by_hand(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Xiao et al. 2023, Eq. 4, with a mean of 1, of channels that are used as much as 0.3 of their mean at least."""
    inputs, weights = np.abs(values).max(0), np.abs(weight).max(0)
    spread = np.maximum(inputs, 0.3 * inputs.mean()) ** 0.6 / np.maximum(weights, 0.3 * weights.mean()) ** 0.4
    return spread / spread.mean()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_layer_is_its_own_with_inputs_divided_and_columns_multiplied(policy):
    model, values = smoothing(**policy), uneven(50)
    quant.calibrate(model, [values[:30], values[30:]])
    layer, weight, inputs = model[0], model[0].weight.detach().numpy(), values.numpy()
    shift = inputs.mean(0) if "shift" in policy else np.zeros(6)
    spread = layer.activation_spread.numpy()
    np.testing.assert_allclose(spread, spread_by_hand(inputs - shift, weight), rtol=1e-5)
    left = (inputs - shift) / spread
    np.testing.assert_allclose(layer.activation_max[0], left.max(), rtol=1e-5)

    # Four bits of activations, eight of weights, by themselves.
    step = (left.max() - left.min()) / 15
    zero_point = np.round(-left.min() / step)
    steps = np.clip(np.round(left / step) + zero_point, 0, 15) - zero_point
    columns = weight * spread
    weight_steps = np.abs(columns).max(1, keepdims=True) * 2 / 255
    integers = np.clip(np.round(columns / weight_steps), -128, 127)
    expected = (steps * step + shift / spread) @ (integers * weight_steps).T + layer.bias.detach().numpy()
    with torch.no_grad(), quant.at(model, "w8a4"):
        np.testing.assert_allclose(model(values).numpy(), expected, atol=1e-4)
        np.testing.assert_array_equal(layer.weight_integers(quant.BitWidth(8, 4))[0], integers)
        as_it_acts = layer.weight_at(quant.BitWidth(8, 4))
        np.testing.assert_allclose(as_it_acts, integers * weight_steps / spread, rtol=1e-5)
        seen = layer.seen(values)
    np.testing.assert_allclose(seen.numpy(), steps * step * spread + shift, atol=1e-4)
    bias = layer.bias.detach()
    torch.testing.assert_close(nn.functional.linear(seen, as_it_acts, bias), torch.tensor(expected).float())


def test_runs_with_inputs_in_full_precision_are_what_they_were():
    model, plain, values = smoothing(smooth=True), smoothing(), uneven(50)
    quant.calibrate(model, [values])
    for bit_width in ("fp", "w4a32"):
        with quant.at(model, bit_width), quant.at(plain, bit_width):
            assert torch.equal(model(values), plain(values))
    quant.unprepare(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "mse"])
@pytest.mark.parametrize("bit_width", ["w8a6", "w8a4"])
def test_a_large_channel_costs_far_less(observer, bit_width):
    values, errors = uneven(400), []
    for policy in ({"smooth": True}, {}):
        model = quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("/per_channel", **policy))
        nn.init.constant_(model[0].bias, 0)
        model[0].weight.data = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
        # A large input has small weights, as behind the GELU of a trained model.
        model[0].weight.data[:, 0] *= 0.02
        quant.calibrate(model, [values], observer=observer)
        with torch.no_grad(), quant.at(model, bit_width):
            errors.append(float((model(values) - nn.functional.linear(values, model[0].weight)).square().mean()))
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_those_of_the_form_written_out(policy):
    model, values = smoothing(**policy), uneven(20)
    quant.calibrate(model, [values])
    layer = model[0]
    shift = torch.zeros(6) if layer.activation_shift is None else layer.activation_shift.clone()
    spread = layer.activation_spread.clone()
    scale, zero_point = layer.activation_qparams(4)
    weight, inputs = layer.weight.detach().requires_grad_(), values.clone().requires_grad_()
    # Observed in the same pass: the new spread is set before the backward pass.
    values.requires_grad_()
    with quant.at(model, "w4a4"), quant.observe(model):
        out = model(values)
    out.square().sum().backward()
    on_grid = quant.fake_quantize_activation((inputs - shift) * spread.reciprocal(), scale, zero_point, 4)
    by_hand = (on_grid + shift / spread) @ quant.fake_quantize_weight(weight * spread, 8).T + layer.bias
    by_hand.square().sum().backward()
    torch.testing.assert_close(out, by_hand)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values.grad, inputs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("observer", ["min_max", "mse"])
@pytest.mark.parametrize("policy", POLICIES)
def test_padding_changes_nothing(policy, observer):
    frames, mask = uneven(2, 5), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    padded, alone = smoothing(**policy), smoothing(**policy)
    with quant.observe(padded, observer), quant.valid_frames(mask):
        padded(frames.where(mask.unsqueeze(-1), 99))
    with quant.observe(alone, observer):
        alone(torch.cat([frames[0], frames[1, :3]]))
    for name in ("activation_spread", "activation_min", "activation_max"):
        torch.testing.assert_close(getattr(padded[0], name), getattr(alone[0], name))


def test_a_smoothed_model_comes_back_from_its_state_and_learns_steps():
    model, again = (smoothing(smooth=True, weight_range="mse") for _ in range(2))
    inputs = uneven(7)
    quant.calibrate(model, [uneven(30)], observer="mse")
    again.load_state_dict(model.state_dict())
    with quant.at(model, "w4a4"), quant.at(again, "w4a4"):
        expected = model(inputs)
        assert torch.equal(again(inputs), expected)
    quant.learn_steps(model, "w4a4")
    with quant.at(model, "w4a4"):
        torch.testing.assert_close(model(inputs), expected)


class Branches(nn.Module):
    """Two layers that take one tensor, and a third that takes it after it was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = (nn.Linear(6, 4) for _ in range(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        return self.one(values) + self.two(values) + self.three(values.mul_(2))


@pytest.mark.parametrize("masked", [False, True])
def test_layers_that_take_one_tensor_share_a_spread_and_no_others(masked):
    model = quant.prepare(Branches(), quant.Policy("/per_channel", smooth=True))
    values = uneven(2, 3, 5)
    mask = torch.tensor([[True, True, True], [True, False, False]]) if masked else None
    with torch.no_grad(), quant.observe(model), quant.valid_frames(mask):
        for part in values.unbind(2):
            model(part)
    assert torch.equal(model.one.activation_spread, model.two.activation_spread)
    assert not torch.equal(model.two.activation_spread, model.three.activation_spread)
    used = values.flatten(0, 2) if mask is None else values[mask].flatten(0, 1)
    alone = []
    for layer, factor in ((model.one, 1), (model.two, 1), (model.three, 2)):
        own = quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("/per_channel", smooth=True))
        own.load_state_dict({f"0.{key}": value for key, value in layer.state_dict().items()})
        quant.calibrate(own, [factor * used])
        alone.append(own[0].activation_spread)
    torch.testing.assert_close(model.one.activation_spread, torch.minimum(alone[0], alone[1]))
    torch.testing.assert_close(model.three.activation_spread, alone[2])


def test_single_layers_are_smoothed_by_a_word():
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.Linear(6, 6), nn.Linear(6, 6))
    policy = quant.Policy(activation_range="per_token", layers={"2": "/static/smooth"})
    quant.prepare(model, policy)
    assert [layer.activation_spread is not None for layer in model] == [False, False, True]
    assert quant.Policy(**policy.to_dict()) == policy
    quant.prepare(quant.unprepare(model), quant.Policy(layers={"*": "/smooth"}))
    assert [layer.activation_spread is not None for layer in model] == [False, True, True]


@pytest.mark.parametrize(
    "policy",
    [
        quant.Policy(smooth=True, activation_range="per_token"),
        quant.Policy(smooth=True, layers={"1": "/per_token"}),
        quant.Policy(activation_range="per_token", layers={"1": "/smooth"}),
    ],
)
def test_ranges_of_tokens_are_not_smoothed(policy):
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"layer '1' is to be smoothed.* has a range for each token"):
        quant.prepare(model, policy)
    assert not quant.is_prepared(model)


def state_of_rank(rank: int, folder: Path) -> None:
    for place, policy in enumerate(POLICIES):
        model = smoothing(**policy)
        quant.calibrate(model, [uneven(8)] if rank == 0 else [uneven(4, seed=1), uneven(4, seed=2)], observer="mse")
        torch.save(model.state_dict(), f"{folder}/{place}-{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_find_the_spread_of_one(tmp_path):
    on_two_ranks(state_of_rank, tmp_path)
    for place, policy in enumerate(POLICIES):
        model = smoothing(**policy)
        quant.calibrate(model, [uneven(8), uneven(4, seed=1), uneven(4, seed=2)], observer="mse")
        for rank in (0, 1):
            for key, value in torch.load(tmp_path / f"{place}-{rank}.pt", weights_only=True).items():
                torch.testing.assert_close(value, model.state_dict()[key], msg=key)
