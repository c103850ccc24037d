import numpy as np
import pytest
import torch
from torch import nn

import quant

RUNS = ["w2a8", "w4a8"]


def learning(**policy) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    quant.prepare(model, quant.Policy(activation_range="per_token", layers={"0": "/per_channel"}, **policy))
    quant.learn_bit_widths(model, RUNS)
    return model


def trained(model: nn.Sequential, steps: int = 120) -> tuple[dict[str, list[float]], torch.Tensor]:
    inputs = torch.randn(256, 8)
    with torch.no_grad():
        target = model(inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses: dict[str, list[float]] = {run: [] for run in RUNS}
    for _ in range(steps):
        optimizer.zero_grad()
        for run in RUNS:
            with quant.at(model, run):
                loss = (model(inputs) - target).square().mean() / target.var()
            loss.backward()
            losses[run].append(loss.item())
        optimizer.step()
    return losses, inputs


def test_each_bit_width_learns_its_own_scales_and_bias_beside_one_weight():
    model = learning()
    names = {name for name, _ in model.named_parameters()}
    own = {f"{layer}.learned.{run}.{kind}" for layer in "02" for kind in ("growth", "change") for run in RUNS}
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias"} | own
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses, _ = trained(model)
    assert losses["w2a8"][-1] < 0.5 * losses["w2a8"][0]
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_numbers_of_a_bit_width_are_those_of_its_scales_and_correction():
    model = learning(granularity="per_tensor")
    trained(model, 20)
    layer, inputs = model[2], torch.rand(5, 32)
    learned = layer.learned["w2a8"]
    assert learned.growth.any()
    first, factor = learned.scale.numpy(), learned.factor.detach().numpy()
    weight = np.clip(np.round(layer.weight.detach().numpy() / first), -2, 1) * first * factor
    low, high = inputs.numpy().min(1, keepdims=True).clip(max=0), inputs.numpy().max(1, keepdims=True).clip(min=0)
    step = (high - low) / 255
    seen = (np.clip(np.round(inputs.numpy() / step) + np.round(-low / step), 0, 255) - np.round(-low / step)) * step
    expected = seen @ weight[0].reshape(layer.weight.shape).T if weight.ndim > 2 else seen @ weight.T
    expected = expected + layer.bias.detach().numpy() - learned.correction.detach().numpy()
    with quant.at(model, "w2a8"):
        np.testing.assert_allclose(layer(inputs).detach().numpy(), expected, atol=1e-5)


def test_settled_it_runs_as_it_was_trained_and_has_no_parameters_more():
    model = learning()
    _, inputs = trained(model)
    before = {}
    for run in (*RUNS, "fp", "w8a8"):
        with quant.at(model, run):
            before[run] = model(inputs).detach()
    assert [str(run) for run in quant.settle_bit_widths(model)] == RUNS
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [str(run) for run in model[0].rounded] == [str(run) for run in model[0].corrected] == RUNS
    for run, expected in before.items():
        with quant.at(model, run):
            assert torch.allclose(model(inputs), expected, atol=1e-6), run
    assert quant.settle_bit_widths(model) == []


def test_ranges_that_are_observed_leave_what_is_learned():
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    quant.learn_bit_widths(model, ["w4a4"])
    with quant.observe(model):
        model(torch.randn(8, 4))
    quant.calibrate(model, [torch.randn(8, 4)])
    assert [str(run) for run in quant.learning_bit_widths(model)] == ["w4a4"]
    quant.unprepare(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_what_cannot_learn_is_refused():
    model = quant.prepare(nn.Sequential(nn.Linear(4, 8)))
    for bit_widths, words in (([], "give the bit-widths"), (["fp"], "full precision"), (["w9a8"], "2 to 8")):
        with pytest.raises(ValueError, match=words):
            quant.learn_bit_widths(model, bit_widths)
    quant.calibrate(model, [torch.randn(8, 4)])
    quant.learn_steps(model, "w4a4")
    with pytest.raises(ValueError, match="learned steps for w4a4 already"):
        quant.learn_bit_widths(model, ["w4a8"])
    with pytest.raises(ValueError, match="not prepared"):
        quant.learn_bit_widths(nn.Sequential(nn.Linear(4, 8)), ["w4a8"])


def rounded_on_data(granularity: str = "per_channel") -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = quant.prepare(
        nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)),
        quant.Policy(activation_range="per_token", layers={"0": "/per_channel", "2": f"/{granularity}"}),
    )
    inputs = torch.randn(256, 8)
    list(quant.round_weights(model, "w2a8", [inputs]))
    return model, inputs


def integers_of(model: nn.Sequential) -> list[torch.Tensor]:
    return [layer.weight_integers(quant.parse_bit_width("w2a8"))[0].clone() for layer in (model[0], model[2])]


@pytest.mark.parametrize("granularity", ["per_channel", "per_group_32"])
@pytest.mark.parametrize("offsets", [False, True])
def test_a_bit_width_begins_with_what_was_chosen_on_data(granularity, offsets):
    model, inputs = rounded_on_data(granularity)
    chosen = integers_of(model)
    nearest = [layer.weight_integers(quant.parse_bit_width("w2a7"))[0] for layer in (model[0], model[2])]
    assert not all(map(torch.equal, chosen, nearest))
    with quant.at(model, "w2a8"):
        expected = model(inputs)
    quant.learn_bit_widths(model, ["w2a8"], offsets)
    with quant.at(model, "w2a8"):
        assert torch.allclose(model(inputs), expected, atol=1e-5)
    assert all(map(torch.equal, integers_of(model), chosen))


@pytest.mark.parametrize("offsets", [False, True])
def test_one_scale_for_a_whole_weight_begins_with_what_was_found(offsets):
    model, inputs = rounded_on_data("per_tensor")
    with quant.at(model, "w2a8"):
        expected = model(inputs)
    quant.learn_bit_widths(model, ["w2a8"], offsets)
    assert model[2].learned["w2a8"].growth.shape == (1, 1, 1)
    for _ in range(2):
        with quant.at(model, "w2a8"):
            assert torch.allclose(model(inputs), expected, atol=1e-5)
        quant.settle_bit_widths(model)


@pytest.mark.parametrize("offsets", [False, True])
def test_scales_and_biases_learn_beside_integers_that_stay_or_move(offsets):
    model, inputs = rounded_on_data()
    chosen, weight = integers_of(model), model[2].weight.detach().clone()
    quant.learn_bit_widths(model, ["w2a8"], offsets)
    exact, own = model(inputs).detach(), quant.own_parameters(model)
    assert {id(p) for p in own} == {id(p) for name, p in model.named_parameters() if "w2a8" in name}
    optimizer = torch.optim.Adam(own, lr=2e-2)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 200)
        with quant.at(model, "w2a8"):
            loss = (model(inputs) - exact).square().mean() / exact.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.equal(model[2].weight, weight)
    assert all(map(torch.equal, integers_of(model), chosen)) is not offsets
    if not offsets:  # of so few weights the chosen integers are the best already
        assert losses[-1] < 0.75 * losses[0]
    with quant.at(model, "w2a8"):
        trained = model(inputs).detach()
    quant.settle_bit_widths(model)
    with quant.at(model, "w2a8"):
        assert torch.allclose(model(inputs), trained, atol=1e-5)
