from pathlib import Path

import pytest
import torch
from torch import nn
from two_ranks import on_two_ranks

import quant

MEANS = torch.linspace(-5, 5, 6)


def shifting(**policy) -> nn.Sequential:
    torch.manual_seed(0)
    return quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("w8", shift=True, **policy))


def hovering(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small variations around each channel's own mean."""
    return MEANS + 0.1 * torch.randn(*shape, 6, generator=torch.Generator().manual_seed(seed))


def test_the_layer_is_its_own_with_the_means_taken_off_and_given_back():
    model, values = shifting(), hovering(50)
    quant.calibrate(model, [values[:30], values[30:]])
    layer, mean = model[0], values.mean(0)
    assert torch.allclose(layer.activation_shift, mean, atol=1e-6)
    assert torch.equal(layer.activation_max[0], (values - layer.activation_shift).max())
    scale, zero_point = quant.activation_qparams(*(values - mean).aminmax(), 4)
    with quant.at(model, "w8a4"):
        by_hand = quant.fake_quantize_activation(values - mean, scale, zero_point, 4) + mean
        expected = nn.functional.linear(by_hand, layer.quantized_weight(), layer.bias)
        assert torch.allclose(model(values), expected, atol=1e-4)
    assert torch.equal(model(values), nn.functional.linear(values, layer.weight, layer.bias))


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "mse"])
def test_four_bits_keep_what_hovers_around_means(observer):
    values = hovering(400)
    shifted, plain = shifting(), quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("w8"))
    plain.load_state_dict({key: value for key, value in shifted.state_dict().items() if "shift" not in key})
    errors = []
    for model in (shifted, plain):
        quant.calibrate(model, [values], observer=observer)
        with torch.no_grad(), quant.at(model, "w8a4"):
            errors.append((model(values) - nn.functional.linear(values, model[0].weight, model[0].bias)).var())
    assert errors[0] < 0.1 * errors[1]


def test_gradients_are_those_of_the_form_written_out():
    model, values = shifting(), hovering(20)
    quant.calibrate(model, [values])
    layer = model[0]
    with quant.at(model, "w4a4"):
        model(values).square().sum().backward()
    found = layer.weight.grad
    weight = layer.weight.detach().requires_grad_()
    on_grid = quant.fake_quantize_activation(values - layer.activation_shift, *layer.activation_qparams(4), 4)
    out = (on_grid + layer.activation_shift) @ quant.fake_quantize_weight(weight, 8).T + layer.bias
    assert torch.allclose(found, torch.autograd.grad(out.square().sum(), weight)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_padding_changes_nothing(observer):
    frames, mask = hovering(2, 5), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    padded, alone = shifting(), shifting()
    with quant.observe(padded, observer), quant.valid_frames(mask):
        padded(frames.where(mask.unsqueeze(-1), 99))
    with quant.observe(alone, observer):
        alone(torch.cat([frames[0], frames[1, :3]]))
    for name in ("activation_shift", "activation_min", "activation_max"):
        assert torch.allclose(getattr(padded[0], name), getattr(alone[0], name), atol=1e-5)


def test_a_shifted_model_comes_back_from_its_state_and_learns_steps():
    model, again, inputs = shifting(), shifting(), hovering(7)
    quant.calibrate(model, [hovering(30)], observer="mse")
    again.load_state_dict(model.state_dict())
    with quant.at(model, "w4a4"), quant.at(again, "w4a4"):
        expected = model(inputs)
        assert torch.equal(again(inputs), expected)
    quant.learn_steps(model, "w4a4")
    with quant.at(model, "w4a4"):
        assert torch.allclose(model(inputs), expected, atol=1e-5)


def shift_of_rank(rank: int, folder: Path) -> None:
    model = shifting()
    quant.calibrate(model, [hovering(8)] if rank == 0 else [hovering(4, seed=1), hovering(4, seed=2)], observer="mse")
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_find_the_shift_of_one(tmp_path):
    on_two_ranks(shift_of_rank, tmp_path)
    model = shifting()
    quant.calibrate(model, [hovering(8), hovering(4, seed=1), hovering(4, seed=2)], observer="mse")
    for rank in (0, 1):
        for key, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert torch.allclose(value, model.state_dict()[key], atol=1e-6), key
