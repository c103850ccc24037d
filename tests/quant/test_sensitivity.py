from dataclasses import asdict
from itertools import product

import pytest
import torch
from torch import nn

import quant
from quant import Sensitivity
from quant.sensitivity import least_error


def three_layers() -> nn.Sequential:
    """The middle layer's weights have long tails: few bits cost it most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64))
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(32, 32).pow(7) / 300)
    return quant.prepare(model, quant.Policy(first_layer="a32"))


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return [torch.randn(40, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def test_each_row_is_the_error_of_one_layer_at_few_bits(batches):
    model = three_layers()
    rows = quant.sensitivities(model, batches, bits=[8, 2, 4])
    assert [(row.layer, row.bits) for row in rows] == [(name, b) for name in "024" for b in (2, 4, 8)]
    inputs = torch.cat(batches)
    exact = model(inputs)
    with torch.no_grad():
        model[2].weight.copy_(quant.fake_quantize_weight(model[2].weight, 2))
        error = (model(inputs) - exact).square().mean() / (exact - exact.mean(0)).square().mean()
    assert rows[3].error == pytest.approx(error.item(), rel=1e-4)
    assert rows[3].size == 32 * 32 / 4 + 32 * 4
    assert max((row for row in rows if row.bits == 2), key=lambda row: row.error).layer == "2"
    assert set(asdict(rows[0])) == {"layer", "bits", "error", "size"}


def test_the_model_is_left_as_it_was(batches):
    model = three_layers().train()
    rules = [layer.rule for layer in quant.quant_layers(model).values()]
    quant.sensitivities(model, batches[:1], bits=[4])
    assert [layer.rule for layer in quant.quant_layers(model).values()] == rules
    assert model.training


def test_the_search_finds_the_best_policy_of_all(batches):
    model = three_layers()
    rows = quant.sensitivities(model, batches, bits=[2, 4, 8])
    by_layer = {(row.layer, row.bits): row for row in rows}
    for average in (3.0, 4.0, 6.0):
        policy = quant.policy_within(model, rows, average_bits=average)
        bits = [int(policy.layers[name].removeprefix("w").split("a")[0]) for name in "024"]
        sizes = [model[int(name)].weight.numel() for name in "024"]

        def mean_bits(chosen, sizes=sizes):
            return sum(b * size for b, size in zip(chosen, sizes, strict=True)) / sum(sizes)

        def error(chosen):
            return sum(by_layer[name, b].error for name, b in zip("024", chosen, strict=True))

        assert mean_bits(bits) <= average
        best = min(error(chosen) for chosen in product((2, 4, 8), repeat=3) if mean_bits(chosen) <= average)
        assert error(bits) == pytest.approx(best)


def test_a_mixed_policy_loses_less_than_equal_bits_of_nearly_the_same_size(batches):
    model = three_layers()
    rows = quant.sensitivities(model, batches)
    policy = quant.policy_within(model, rows, average_bits=4.2)
    exact = model(batches[0])
    errors = []
    for p in (policy, quant.Policy(first_layer="a32")):
        quant.prepare(quant.unprepare(model), p)
        with torch.no_grad(), quant.at(model, "w4a32"):
            errors.append((model(batches[0]) - exact).square().mean())
    assert errors[0] < errors[1]
    assert quant.Policy(**policy.to_dict()) == policy


def test_other_choices_of_the_policy_are_kept(batches):
    policy = quant.Policy(
        granularity="per_tensor", layers={"*": "a8", "2": "w8", "4": "a6/per_channel"}, weight_range="mse"
    )
    model = quant.prepare(quant.unprepare(three_layers()), policy)
    rows = quant.sensitivities(model, batches[:1], bits=[4])
    found = quant.policy_within(model, rows, average_bits=4)
    assert found.layers == {"*": "a8", "2": "w8", "0": "w4a8", "4": "w4a6/per_channel"}
    assert (found.granularity, found.weight_range) == ("per_tensor", "mse")


def test_a_layers_own_range_and_smoothing_are_kept(batches):
    policy = quant.Policy(activation_range="per_token", layers={"2": "/static/smooth"})
    model = quant.prepare(quant.unprepare(three_layers()), policy)
    found = quant.policy_within(model, quant.sensitivities(model, batches[:1], bits=[4]), average_bits=4)
    assert found.layers == {"2": "w4/static/smooth", "4": "w4"}


def test_a_models_bytes_are_packed_weights_scales_and_float_for_the_rest():
    model = quant.prepare(quant.unprepare(three_layers()), quant.Policy(layers={"4": "fp"}, first_layer="w8"))
    weights = {name: layer.weight.numel() for name, layer in quant.quant_layers(model).items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert quant.model_bytes(model, "fp") == 4 * total
    scales = sum(len(model[index].weight) for index in (0, 2))
    expected = weights["0"] + weights["2"] / 2 + 4 * scales + 4 * (total - weights["0"] - weights["2"])
    assert quant.model_bytes(model, "w4a8") == expected


def test_impossible_searches_say_what_is_wrong(batches):
    model = three_layers()
    with pytest.raises(ValueError, match="no batch"):
        quant.sensitivities(model, [])
    with pytest.raises(ValueError, match=r"from 2 to 8, got \[1, 4\]"):
        quant.sensitivities(model, batches, bits=[1, 4])
    with pytest.raises(ValueError, match="one tensor from each batch"):
        quant.sensitivities(model, batches, lambda batch: (model(batch), None))
    fixed = quant.prepare(quant.unprepare(three_layers()), quant.Policy(layers={"*": "w8"}))
    with pytest.raises(ValueError, match="nothing to choose"):
        quant.sensitivities(fixed, batches)
    rows = [Sensitivity(name, 4, 0.0, 100.0) for name in "024"]
    with pytest.raises(ValueError, match="fewest bits that were tried take 4 bits on average, over the budget of 3"):
        quant.policy_within(model, rows, average_bits=3)


def test_costs_without_a_common_divisor_stay_within_the_budget():
    errors, costs = [[3.0, 1.0, 0.0]] * 20, [[100_003, 200_003, 400_009]] * 20
    picks = least_error(errors, costs, 4_100_000)
    assert sum(costs[0][pick] for pick in picks) <= 4_100_000
    assert sum(errors[0][pick] for pick in picks) <= 21
    assert least_error(errors, costs, 20 * 100_003) == [0] * 20


def test_outputs_that_do_not_differ_have_no_sensitivity():
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="variance, which is 0 over 1 examples: give more than one"):
        quant.sensitivities(model, [torch.ones(1, 4)])
    with pytest.raises(ValueError, match="variance, which is nan over 2 examples"):
        quant.sensitivities(model, [torch.tensor([[1.0] * 4, [torch.nan] * 4])])
