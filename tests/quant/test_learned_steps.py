import copy

import pytest
import torch
from torch import nn

import quant
from quant.grid.affine import quantize


def calibrated(**policy) -> nn.Sequential:
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)), quant.Policy(**policy))
    quant.calibrate(model, [torch.randn(64, 6)])
    return model


@pytest.mark.parametrize(
    "policy", [{}, {"weight_range": "mse"}, {"granularity": "per_tensor"}, {"layers": {"2": "/per_group_32"}}]
)
def test_learned_steps_start_where_the_ranges_were(policy):
    model = calibrated(**policy)
    inputs = torch.randn(5, 6)
    with quant.at(model, "w4a4"):
        expected = model(inputs)
    quant.learn_steps(model, "w4a4")
    names = {name for name, _ in model.named_parameters() if name.endswith("step")}
    assert names == {"0.weight_step", "2.weight_step", "2.activation_step"}
    with quant.at(model, "w4a4"):
        assert torch.allclose(model(inputs), expected, atol=1e-6)


def test_training_moves_the_steps_and_lowers_the_loss():
    model = calibrated()
    inputs = torch.randn(64, 6)
    target = model(inputs).detach()
    quant.learn_steps(model, "w2a3")
    steps = [p for name, p in model.named_parameters() if name.endswith("step")]
    before = [step.detach().clone() for step in steps]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        with quant.at(model, "w2a3"):
            loss = (model(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(old, new) for old, new in zip(before, steps, strict=True))


def test_layer_numbers_for_export_are_the_learned_ones():
    model = calibrated()
    quant.learn_steps(model, "w4a4")
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight_step.mul_(0.8)
        model[2].activation_step.mul_(1.3)
    layer, hidden = model[2], torch.rand(9, 32)
    integers, scale = layer.weight_integers(quant.BitWidth(4))
    assert torch.equal(scale, layer.weight_step)
    scale_in, zero_point = layer.activation_qparams(4)
    on_grid = quant.dequantize(quantize(hidden, scale_in, zero_point, 4, signed=False), scale_in, zero_point)
    with quant.at(model, "w4a4"):
        assert torch.allclose(
            layer(hidden), nn.functional.linear(on_grid, quant.dequantize(integers, scale), layer.bias), atol=1e-6
        )


def test_only_the_learned_bit_width_and_full_precision_run():
    model = calibrated()
    assert quant.learned_bit_width(model) is None
    quant.learn_steps(model, "w4a4")
    assert quant.learned_bit_width(model) == quant.parse_bit_width("w4a4")
    with quant.at(model, "fp"):
        model(torch.randn(2, 6))
    with pytest.raises(ValueError, match="learned at w4a4: the model runs at that and at fp, not at w8a8"):
        quant.at(model, "w8a8").__enter__()
    with pytest.raises(ValueError, match="steps are learned at w4a4: ranges are no longer observed"):
        quant.observe(model).__enter__()
    with pytest.raises(ValueError, match="steps are learned at w4a4"):
        quant.calibrate(model, [torch.randn(2, 6)])
    with pytest.raises(ValueError, match="has learned steps for w4a4 already"):
        quant.learn_steps(model, "w4a4")


def test_what_cannot_be_learned_is_said():
    with pytest.raises(ValueError, match="full precision has no steps"):
        quant.learn_steps(calibrated(), "fp")
    with pytest.raises(quant.NotCalibratedError, match="layer '1' has no activation range for w4a4"):
        quant.learn_steps(quant.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), "w4a4")
    weights_only = calibrated()
    quant.learn_steps(weights_only, "w4a32")
    assert weights_only[2].activation_step is None


def test_copies_share_nothing():
    model = calibrated()
    quant.learn_steps(model, "w4a4")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[2].activation_step.mul_(2)
    assert twin[2].activation_step == 2 * model[2].activation_step
    assert quant.learned_bit_width(twin) == quant.learned_bit_width(model)
