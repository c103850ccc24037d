"""Options of the quantized branch, on SimSiam, where each must do what it says."""

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy

import quant
from ssql.methods import BYOL, MoCo, SimCLR, SimSiam, SSQLOptions

METHODS = [SimSiam, BYOL, MoCo, SimCLR]


def drawn(model, steps=40):
    """Bit-widths of the first steps."""
    widths = []
    for step in range(steps):
        moment = {"global_step": step, "current_epoch": step // 10}
        fake = type("At", (), moment | {"seed": model.seed})()
        widths += type(model)._bit_widths(fake, model.ssql)
    return widths


def test_draws_are_separate_or_the_same(build):
    separate = drawn(build(SimSiam))
    assert {width.weight for width in separate} == set(range(2, 9))
    assert {width.activation for width in separate} == set(range(4, 9))
    assert any(width.activation != max(4, width.weight) for width in separate)
    same = drawn(build(SimSiam, ssql=SSQLOptions(draw="same")))
    assert all(width.activation == max(4, width.weight) for width in same)


def test_a_new_draw_each_step_or_each_epoch(build):
    assert len(set(drawn(build(SimSiam)))) > 10
    widths = drawn(build(SimSiam, ssql=SSQLOptions(draw_every="epoch")))
    assert all(len(set(widths[first : first + 10])) == 1 for first in range(0, 40, 10))
    assert len(set(widths)) > 1


def run_at_bits(model, bits):
    views = [(view, None) for view in model.augmentation.views]
    with quant.observe(model):
        full = model.branch(views)
    with quant.at(model, bits):
        return full, model.branch(views)


FIXED = {"weight_bits": (2, 2), "activation_bits": (4, 4)}


def test_without_the_auxiliary_loss_only_the_quantized_branch_is_trained(build, step, assert_same_gradients):
    loss, gradients = step(build(SimSiam, ssql=SSQLOptions(auxiliary_loss=False, **FIXED)))
    model = build(SimSiam)
    full, quantized = run_at_bits(model, "w2a4")
    p, z = quantized.predictions, [value.detach() for value in full.projections]
    expected = -(F.cosine_similarity(p[0], z[1]).mean() + F.cosine_similarity(p[1], z[0]).mean()) / 2
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_reversed_both_branches_predict_quantized_features(build, step, assert_same_gradients):
    loss, gradients = step(build(SimSiam, ssql=SSQLOptions(targets="quantized", **FIXED)))
    model = build(SimSiam)
    full, quantized = run_at_bits(model, "w2a4")
    z = [value.detach() for value in quantized.projections]
    p, q = full.predictions, quantized.predictions
    expected = -sum(F.cosine_similarity(*pair).mean() for pair in zip(p + q, z[::-1] * 2, strict=True)) / 4
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_reversed_logs_the_loss_that_is_trained(build):
    model, logs = build(SimSiam, ssql=SSQLOptions(targets="quantized")), {}
    model.log_dict = lambda values, **_: logs.update(values)
    loss = model.training_step({"inputs": None, "lengths": None}, 0)
    assert torch.allclose(loss, (logs["loss_fp"] + logs["loss_quantized"]) / 2)


def test_ranges_are_of_the_step_or_follow_with_momentum(build, step):
    ends = {}
    for observer in ("min_max", "moving_average"):
        model = build(SimSiam, ssql=SSQLOptions(observer=observer))
        layer = quant.quant_layers(model.encoder)["blocks.0.mlp.2"]
        step(model)
        first = layer.activation_max[0].clone()
        with torch.no_grad():
            model.encoder.blocks[0].mlp[0].weight.mul_(3)
        step(model)
        ends[observer] = first, layer.activation_max[0].clone()
    (first, second), (start, followed) = ends.values()
    assert second > 2 * first
    assert torch.allclose(followed, torch.lerp(second, start, 0.9**2), rtol=0.15)


def test_another_observer_sets_the_ranges_of_the_drawn_bits(build, step):
    loss, _ = step(build(SimSiam, ssql=SSQLOptions(observer="mse")))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", METHODS)
def test_sequential_differentiation_is_the_same_method(build, step, method):
    (loss, gradients), (other_loss, other) = (
        step(build(method, ssql=SSQLOptions(sequential=sequential))) for sequential in (True, False)
    )
    assert torch.allclose(loss, other_loss)
    assert gradients.keys() == other.keys()
    assert all(torch.allclose(gradients[name], other[name], atol=1e-6) for name in other)


@pytest.mark.parametrize("method", [MoCo, SimCLR])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("auxiliary_loss", [True, False])
def test_bf16_autocast_gives_every_parameter_its_gradient(build, method, sequential, auxiliary_loss):
    options = SSQLOptions((8, 8), (8, 8), sequential=sequential, auxiliary_loss=auxiliary_loss)
    losses, gradients = [], []
    for enabled in (False, True):
        model = build(method, ssql=options)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model.training_step({"inputs": None, "lengths": None}, 0)
        loss.backward()
        losses.append(loss)
        gradients.append([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])
    assert torch.allclose(*losses, atol=0.01)
    assert all(F.cosine_similarity(*pair, dim=0) > 0.95 for pair in zip(*gradients, strict=True))


def test_data_of_another_modality_and_impossible_trainers_are_errors(build):
    images = type("Images", (), {"modality": "image", "batch_size": 8})()
    trainer = Trainer(logger=False, accelerator="cpu")
    with pytest.raises(ValueError, match="Images gives image, but the speech_transformer encoder takes audio"):
        build(SimSiam).check_run(trainer, images)
    build(SimSiam).check_run(trainer, None)
    with pytest.raises(ValueError, match="does not allow: use strategy ddp or fsdp2"):
        build(SimSiam).check_run(type("T", (), {"precision": "32-true", "strategy": object()})(), None)
    with pytest.raises(ValueError, match="strategy fsdp, .* is not supported: use strategy fsdp2"):
        build(SimSiam, ssql=False).check_run(type("T", (), {"strategy": FSDPStrategy()})(), None)
    scaled = type("T", (), {"precision": "16-mixed", "strategy": trainer.strategy})()
    with pytest.raises(ValueError, match="precision 16-mixed scales the loss only after"):
        build(SimSiam).check_run(scaled, None)
    build(SimSiam, ssql=SSQLOptions(sequential=False)).check_run(scaled, None)
