import copy

import pytest
import timm
import torch
from torch import nn

import quant


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def test_prepare_calibrate_and_run_at_a_bit_width():
    model = two_layers()
    inputs = torch.randn(16, 6)
    expected = model(inputs)
    quant.prepare(model)
    quant.calibrate(model, [inputs])
    assert torch.equal(model(inputs), expected)
    with quant.at(model, "w4a4"):
        hidden = nn.functional.relu(
            nn.functional.linear(inputs, quant.fake_quantize_weight(model[0].weight, 8), model[0].bias)
        )
        unquantized = nn.functional.relu(nn.functional.linear(inputs, model[0].weight, model[0].bias))
        qparams = quant.activation_qparams(unquantized.min(), unquantized.max(), 4)
        hidden = quant.fake_quantize_activation(hidden, *qparams, 4)
        by_hand = nn.functional.linear(hidden, quant.fake_quantize_weight(model[2].weight, 4), model[2].bias)
        assert torch.allclose(model(inputs), by_hand)
    assert torch.equal(model(inputs), expected)


def test_layers_keep_identity_names_and_parameters():
    model = two_layers()
    layers, parameters, keys = list(model), list(model.parameters()), set(model.state_dict())
    quant.prepare(model)
    assert all(a is b for a, b in zip(layers, model, strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {key for key in model.state_dict() if "activation_" not in key} == keys


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [("resnet18", {}, 64), ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32)],
)
def test_timm_models_run_at_every_bit_width_and_more_bits_are_closer(name, arguments, size):
    torch.manual_seed(0)
    model = quant.prepare(timm.create_model(name, num_classes=0, **arguments)).eval()
    images = torch.randn(4, 3, size, size)
    quant.calibrate(model, [images])
    with torch.no_grad():
        reference = model(images)
        similarity = []
        for bit_width in ("w8a8", "w4a8", "w2a4"):
            with quant.at(model, bit_width):
                similarity.append(nn.functional.cosine_similarity(model(images), reference).mean().item())
    assert similarity[0] > 0.99
    assert similarity == sorted(similarity, reverse=True)


def test_both_branches_reach_the_same_parameters():
    model = quant.prepare(two_layers())
    inputs = torch.randn(16, 6)
    with quant.observe(model):
        full = model(inputs)
    with quant.at(model, "w2a4"):
        quantized = model(inputs)
    for output in (full, quantized):
        model.zero_grad()
        output.square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_reused_weights_give_the_same_numbers_and_gradients():
    inputs = torch.randn(16, 6)
    gradients = []
    for reuse in (False, True):
        model = quant.prepare(two_layers())
        quant.calibrate(model, [inputs])
        with quant.at(model, "w3a6", reuse_weights=reuse):
            loss = model(inputs).square().sum() + model(inputs * 0.5).square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_observation_starts_empty_each_time_and_spans_its_passes():
    model = quant.prepare(two_layers())
    with quant.observe(model):
        model(torch.full((1, 6), 9.0))
    with quant.observe(model):
        model(torch.full((1, 6), -1.0))
        model(torch.full((1, 6), 2.0))
    assert (model[0].activation_min == -1).all() and (model[0].activation_max == 2).all()


def test_failed_observation_puts_the_old_ranges_back():
    model = quant.prepare(two_layers())
    quant.calibrate(model, [torch.ones(1, 6)])
    with pytest.raises(RuntimeError), quant.observe(model):
        model(torch.ones(1, 5))
    assert (model[0].activation_max == 1).all()


def test_observers_ignore_padded_frames():
    model = quant.prepare(two_layers())
    frames = torch.rand(2, 3, 6)
    frames[1, 2] = 100
    mask = torch.tensor([[True, True, True], [True, True, False]])
    with quant.observe(model), quant.valid_frames(mask):
        model(frames)
    assert (model[0].activation_max <= 1).all()


def test_copies_and_saved_states_keep_their_ranges_and_share_nothing():
    model = quant.prepare(two_layers())
    quant.calibrate(model, [torch.randn(8, 6)])
    twin = copy.deepcopy(model)
    fresh = quant.prepare(two_layers())
    fresh.load_state_dict(model.state_dict())
    inputs = torch.randn(3, 6)
    with quant.at(model, "w2a2"):
        expected = model(inputs)
        assert not torch.equal(twin(inputs), expected)
    for other in (twin, fresh):
        with quant.at(other, "w2a2"):
            assert torch.equal(other(inputs), expected)


def test_uncalibrated_run_names_the_layer():
    model = quant.prepare(two_layers())
    with (
        pytest.raises(quant.NotCalibratedError, match="layer '2' has no activation range for w4a4"),
        quant.at(model, "w4a4"),
    ):
        pass
    with quant.at(model, "w4a32"):
        model(torch.randn(1, 6))


def test_calibration_without_batches_is_an_error():
    with pytest.raises(ValueError, match="no batch"):
        quant.calibrate(quant.prepare(two_layers()), [])


def test_models_that_cannot_be_prepared():
    with pytest.raises(ValueError, match="no Conv1d, Conv2d or Linear"):
        quant.prepare(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="prepared already"):
        quant.prepare(quant.prepare(two_layers()))
    with pytest.raises(ValueError, match="not prepared"), quant.at(two_layers(), "w8a8"):
        pass
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match="MultiheadAttention, which has no quantized form"):
        quant.prepare(nn.ModuleDict({"stem": nn.Linear(2, 2), "attention": attention}))
    kept = quant.Policy(layers={"attention*": "fp"})
    assert (
        len(quant.quant_layers(quant.prepare(nn.ModuleDict({"s": nn.Linear(2, 2), "attention": attention}), kept))) == 1
    )


def test_the_way_back_and_another_policy():
    model, inputs = two_layers(), torch.randn(16, 6)
    expected, keys = model(inputs), set(model.state_dict())
    layers = list(model)
    quant.prepare(model, quant.Policy(shift=True))
    quant.calibrate(model, [inputs])
    quant.learn_steps(model, "w4a4")
    assert quant.unprepare(model) is model
    assert set(model.state_dict()) == keys
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(a is b for a, b in zip(layers, model, strict=True))
    assert torch.equal(model(inputs), expected)
    with pytest.raises(ValueError, match="not prepared"):
        quant.unprepare(model)
    quant.prepare(model, quant.Policy(granularity="per_tensor"))
    with pytest.raises(quant.NotCalibratedError):
        quant.at(model, "w4a4").__enter__()
