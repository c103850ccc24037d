import copy

import pytest
import torch
from torch import nn

import quant


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 5), nn.Linear(5, 4, bias=False))
    return quant.prepare(model)


@pytest.fixture
def batches():
    return [torch.rand(64, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def outputs(model, bit_width, values):
    with torch.no_grad(), quant.at(model, bit_width):
        return model(values)


def test_each_layers_mean_is_that_of_full_precision(model, batches):
    quant.calibrate(model, batches)
    before = outputs(model, "w3a4", batches[0]).mean(0) - outputs(model, "fp", batches[0]).mean(0)
    quant.correct_bias(model, "w3a4", batches[:1])
    seen = {}
    for name, layer in quant.quant_layers(model).items():
        layer.register_forward_hook(lambda layer, _, output, name=name: seen.setdefault(name, []).append(output))
    for bit_width in ("fp", "w3a4"):
        outputs(model, bit_width, batches[0])
    for layer, (full, quantized) in seen.items():
        dims = [axis for axis in range(full.dim()) if axis != 1]
        assert torch.allclose(quantized.mean(dims), full.mean(dims), atol=1e-5), layer
    assert before.abs().max() > 0.01


def test_the_first_correction_is_the_mean_that_its_weights_rounding_adds(model, batches):
    quant.calibrate(model, batches)
    quant.correct_bias(model, "w4a8", batches)
    layer = model[0]
    rounding = quant.fake_quantize_weight(layer.weight, 8) - layer.weight  # the first layer has 8 bits
    added = torch.stack([nn.functional.conv1d(batch, rounding).mean((0, 2)) for batch in batches]).mean(0)
    assert torch.allclose(layer.correction(quant.parse_bit_width("w4a8")), added, atol=1e-6)


def test_padding_has_no_part_in_the_means():
    torch.manual_seed(0)
    layer = quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy(first_layer="w2"))
    values = torch.rand(2, 5, 6)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    corrections = []
    for noise in (0, 100):
        values[~mask] = noise
        with quant.valid_frames(mask):
            quant.calibrate(layer, [values])
            quant.correct_bias(layer, "w2a8", [values])
        corrections.append(layer[0].correction(quant.parse_bit_width("w2a8")).clone())
    assert torch.allclose(*corrections, atol=1e-6)
    assert corrections[0].abs().max() > 0.01


def test_other_bit_widths_stay_and_the_way_back_forgets(model, batches):
    quant.calibrate(model, batches)
    before = {bit_width: outputs(model, bit_width, batches[0]) for bit_width in ("fp", "w4a8", "w8a8")}
    quant.correct_bias(model, "w4a8", batches)
    assert quant.corrected_bit_widths(model) == [quant.parse_bit_width("w4a8")]
    for bit_width in ("fp", "w8a8"):
        assert torch.equal(outputs(model, bit_width, batches[0]), before[bit_width])
    corrected = outputs(model, "w4a8", batches[0])
    assert not torch.equal(corrected, before["w4a8"])
    quant.correct_bias(model, "w4a8", batches)  # starts anew
    assert torch.equal(outputs(model, "w4a8", batches[0]), corrected)
    quant.prepare(quant.unprepare(model))
    assert not [name for name in model.state_dict() if "correction" in name]
    assert quant.corrected_bit_widths(model) == []


@pytest.mark.parametrize(
    ("bit_width", "count", "message"), [("fp", 1, "full precision has no"), ("w4a8", 0, "at least one")]
)
def test_nothing_to_correct_is_an_error(model, batches, bit_width, count, message):
    quant.calibrate(model, batches)
    with pytest.raises(ValueError, match=message):
        quant.correct_bias(model, bit_width, batches[:count])


def test_an_observation_sets_other_ranges_and_drops_what_belonged_to_the_ones_before(model, batches):
    quant.calibrate(model, batches)
    quant.correct_bias(model, "w4a8", batches)
    with pytest.raises(RuntimeError, match="stopped"), quant.observe(model):
        model(3 * batches[0])
        raise RuntimeError("stopped")
    assert quant.corrected_bit_widths(model) == [quant.parse_bit_width("w4a8")]  # the ranges stayed as well
    with quant.observe(model):
        model(3 * batches[0])
    assert quant.corrected_bit_widths(model) == []
    fresh = quant.prepare(quant.unprepare(copy.deepcopy(model)))
    quant.calibrate(fresh, [3 * batches[0]])
    assert torch.equal(outputs(model, "w4a8", batches[0]), outputs(fresh, "w4a8", batches[0]))


def test_corrections_are_dropped_and_named(model, batches):
    quant.calibrate(model, batches)
    assert quant.drop_corrections(model) == []
    for bit_width in ("w4a8", "w8a8"):
        quant.correct_bias(model, bit_width, batches)
    assert list(map(str, quant.drop_corrections(model))) == ["w4a8", "w8a8"]
    assert not [name for name in model.state_dict() if "correction" in name]


def test_sensitivities_are_those_of_a_model_without_corrections(model, batches):
    quant.calibrate(model, batches)
    before = quant.sensitivities(model, batches, bits=(4,))
    quant.correct_bias(model, "w4a32", batches)
    assert quant.sensitivities(model, batches, bits=(4,)) == before
    assert quant.corrected_bit_widths(model) == [quant.parse_bit_width("w4a32")]
