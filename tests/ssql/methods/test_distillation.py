from types import SimpleNamespace

import lightning
import pytest
import torch

import encoders
import quant
from encoders import SpeechTransformer, VisionEncoder
from ssql.methods import Distillation, SSQLOptions
from ssql.methods.loss_units import LossUnits


class Same(torch.nn.Module):
    """The inputs as they are."""

    def forward(self, inputs, lengths, encoder):
        return inputs, lengths


def build(encoder=None, **arguments) -> Distillation:
    torch.manual_seed(0)
    encoder = encoder or SpeechTransformer(width=16, depth=2, heads=2)
    method = Distillation(encoder, Same(), **arguments)
    method.log = method.log_dict = lambda *_, **__: None
    return method


BATCH = {"inputs": torch.randn(4, 80, 40, generator=torch.Generator().manual_seed(1)), "lengths": None}


def test_the_loss_is_the_distance_to_the_teacher_at_full_precision_and_at_the_drawn_bits():
    method = build(ssql=SSQLOptions(weight_bits=(3, 3), activation_bits=(5, 5)))
    batch = BATCH | {"lengths": torch.tensor([40, 33, 21, 8])}
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    loss = method.training_step(batch, 0)
    with torch.no_grad():
        teacher, lengths = method.teacher.encoder(batch["inputs"], batch["lengths"])
        target = torch.cat([clip[:n] for clip, n in zip(teacher, lengths, strict=True)])
        variance = target.var(dim=0, correction=0)
        assert variance.min() > variance.mean() / 100
        distances = []
        for bit_width in ("fp", "w3a5"):
            with quant.at(method.encoder, bit_width):
                features, _ = method.encoder(batch["inputs"], batch["lengths"])
            mine = torch.cat([clip[:n] for clip, n in zip(features, lengths, strict=True)])
            distances.append(((mine - target).square().mean(dim=0) / variance).mean())
    assert len(target) == 20 + 17 + 11 + 4
    assert torch.allclose(loss, sum(distances) / 2, rtol=1e-4)
    assert 0 < distances[0] < distances[1]


def test_only_the_student_learns_and_the_teacher_stays_what_it_was():
    method = build().train()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    assert not method.teacher.encoder.training
    assert not any(isinstance(module, quant.QuantLayer) for module in method.teacher.modules())
    optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1)
    method.training_step(BATCH, 0).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    assert any(
        not torch.equal(p, before[f"encoder.{name}"])
        for name, p in method.encoder.named_parameters()
        if p.requires_grad
    )


def test_quantized_features_come_closer_to_the_teacher():
    method = build(ssql=SSQLOptions(weight_bits=(2, 2), activation_bits=(4, 4)))
    optimizer = torch.optim.Adam(method.encoder.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = method.training_step(BATCH, 0)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_a_smaller_student_and_images():
    teacher = SpeechTransformer(width=32, depth=2, heads=2)
    method = build(SpeechTransformer(width=16, depth=1, heads=2), teacher=teacher)
    method.training_step(BATCH, 0).backward()
    assert method.matcher.weight.grad.abs().sum() > 0
    vision = build(VisionEncoder("resnet10t", in_channels=1))
    vision.training_step({"inputs": torch.rand(4, 1, 32, 32), "lengths": None}, 0).backward()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="teacher gives features at 25.0 Hz, the student at 50.0 Hz"):
        build(teacher=SpeechTransformer(width=16, depth=1, heads=2, pooling=2))
    with pytest.raises(ValueError, match="LogMel with 80 mels and the teacher's LogMel with 128 mels"):
        build(teacher=SpeechTransformer(n_mels=128, width=16, depth=1, heads=2))
    with pytest.raises(ValueError, match="image encoder cannot teach one of audio"):
        build(teacher=VisionEncoder("resnet10t"))
    with pytest.raises(ValueError, match="teacher in full precision"):
        build(ssql=SSQLOptions(targets="quantized"))


SANDWICH = {"bit_widths": ["w8a8", "w4a8", "w2a8"], "draw": "sandwich"}


def test_a_sandwich_passes_full_precision_the_coarsest_and_one_other(assert_same_gradients):
    method = build(ssql=SSQLOptions(**SANDWICH), policy=quant.Policy(activation_range="per_token"))
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    logged: dict[str, torch.Tensor] = {}
    method.log_dict = lambda values, **_: logged.update(values)
    loss = method.training_step(BATCH, 0)
    loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    runs = [name.removeprefix("loss_") for name in logged if name.startswith("loss_w")]
    assert runs[0] == "w2a8" and runs[1] in ("w4a8", "w8a8") and len(runs) == 2
    twin = build(ssql=SSQLOptions(**SANDWICH), policy=quant.Policy(activation_range="per_token"))
    twin.load_state_dict(method.state_dict())
    views = twin.random_views(BATCH)
    with quant.observe(twin.encoder):
        branch = twin.branch(views)
        targets = twin.targets(views, branch)
        expected = twin.loss(branch, targets)
    for run in runs:
        with quant.at(twin.encoder, run):
            expected = expected + twin.loss(twin.branch(views), targets)
    (expected / 3).backward()
    assert torch.allclose(loss, expected / 3, rtol=1e-5)
    assert_same_gradients(gradients, twin)


def test_losses_in_units_of_their_means_weigh_alike_and_are_part_of_a_checkpoint():
    options = SSQLOptions(**SANDWICH, loss_units="running_mean")
    method = build(ssql=options, policy=quant.Policy(activation_range="per_token"))
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    first = method.training_step(BATCH, 0)
    assert torch.allclose(first, torch.ones(()))  # each loss is its own mean
    twin = build(ssql=options, policy=quant.Policy(activation_range="per_token"))
    twin.load_state_dict(method.state_dict())
    assert torch.equal(twin.training_step(BATCH, 0), method.training_step(BATCH, 0))
    alike = LossUnits(["fp", "w2a8"])
    assert alike("fp", torch.zeros(())) == 0
    assert alike("w2a8", torch.tensor(2.0)) == 1
    assert torch.allclose(alike("fp", torch.tensor(1e-4)), torch.tensor(1e-4 / 2e-3))  # no less than a thousandth
    assert torch.allclose(alike("w2a8", torch.tensor(1.0)), torch.tensor(1 / 1.95))


def test_bit_widths_learn_scales_of_their_own_beside_one_weight(tmp_path):
    method = build(
        ssql=SSQLOptions(**SANDWICH, learn_scales=True, loss_units="running_mean"),
        policy=quant.Policy(activation_range="per_token"),
    )
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        method.training_step(BATCH, 0).backward()
        optimizer.step()
    encoder = method.encoder.eval()
    with pytest.raises(ValueError, match="settle_bit_widths"):
        encoders.save_encoder(encoder, tmp_path / "encoder")
    found = {}
    for run in ("fp", "w8a8", "w2a8"):
        with quant.at(encoder, run), torch.no_grad():
            found[run] = encoder(BATCH["inputs"], None)[0]
    quant.settle_bit_widths(encoder)
    encoders.save_encoder(encoder, tmp_path / "encoder")
    loaded = encoders.load_encoder(tmp_path / "encoder")
    for run, features in found.items():
        with quant.at(loaded, run), torch.no_grad():
            assert torch.allclose(loaded(BATCH["inputs"], None)[0], features, atol=1e-5), run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draw": "sandwich"}, "draw sandwich needs ssql.bit_widths"),
        ({"learn_scales": True}, "learn_scales true needs ssql.bit_widths"),
        ({"loss_units": "running_mean"}, "loss_units running_mean needs ssql.bit_widths"),
        ({"bit_widths": []}, "bit_widths must name one"),
        ({"bit_widths": ["w9a8"]}, "2 to 8"),
        ({"bit_widths": ["fp", "w4a8"]}, "leave fp out"),
        ({"bit_widths": ["w4a8", "w4a8"]}, "names w4a8 twice"),
        ({"bit_widths": ["w4a8", "w2a8"], "own_lr": {"w2a8": 0.1}}, "own_lr gives no rate for w4a8"),
        ({"bit_widths": ["w2a8"], "own_lr": {"w2a8": 0.1, "w3a8": 0.1}}, "rate for w3a8, which is none of bit_widths"),
        ({"bit_widths": ["w2a8"], "own_lr": {"w2a8": -0.1}}, "own_lr must be 0 or more"),
        (SANDWICH | {"targets": "quantized"}, "one quantized pass"),
    ],
)
def test_options_of_named_bit_widths_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        SSQLOptions(**options)


def test_a_quantized_encoder_keeps_its_policy_and_starts_from_its_integers(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=1, heads=2)
    clips = [(BATCH["inputs"], None)]
    quant.quantize(encoder, clips, "w2a8", forward=lambda each: encoder(*each))
    with quant.at(encoder, "w2a8"), torch.no_grad():
        expected = encoder.eval()(*clips[0])[0]
    encoders.save_encoder(encoder, tmp_path / "quantized")
    options = SSQLOptions(bit_widths=["w2a8"], learn_scales=True, learn_offsets=True, own_lr={"w2a8": 0.5})
    method = build(encoders.init_from(str(tmp_path / "quantized"), quantized=True), ssql=options)
    assert quant.policy_of(method.encoder).activation_range == "per_token"
    assert not quant.is_prepared(method.teacher)
    with quant.at(method.encoder, "w2a8"), torch.no_grad():
        assert torch.allclose(method.encoder.eval()(*clips[0])[0], expected, atol=1e-5)
    method._trainer = SimpleNamespace(max_steps=10, max_epochs=1, estimated_stepping_batches=10)
    weights, own = method.configure_optimizers()["optimizer"].param_groups
    assert own["initial_lr"] == 0.5 > weights["initial_lr"]
    assert own["weight_decay"] == 0 < weights["weight_decay"]
    with pytest.raises(ValueError, match="keeps its own policy"):
        build(encoders.init_from(str(tmp_path / "quantized"), quantized=True), policy=quant.Policy())
    encoders.save_encoder(SpeechTransformer(width=16, depth=1, heads=2), tmp_path / "float")
    with pytest.raises(ValueError, match="has no bit-widths yet"):
        encoders.init_from(str(tmp_path / "float"), quantized=True)
    with pytest.raises(ValueError, match="learn_offsets true needs"):
        SSQLOptions(bit_widths=["w2a8"], learn_offsets=True)
    with pytest.raises(ValueError, match="freeze_weights true needs"):
        SSQLOptions(bit_widths=["w2a8"], freeze_weights=True)


def test_frozen_weights_are_their_own_teacher(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=1, heads=2)
    quant.quantize(encoder, [(BATCH["inputs"], None)], "w8a8", "w2a8", forward=lambda each: encoder(*each))
    encoders.save_encoder(encoder, tmp_path / "quantized")
    options = SSQLOptions(bit_widths=["w2a8"], learn_scales=True, learn_offsets=True, freeze_weights=True)
    method = build(encoders.init_from(str(tmp_path / "quantized"), quantized=True), ssql=options)
    assert method.teacher is None
    before = features_at(method.encoder, "fp", "w8a8", "w2a8")
    optimizer = torch.optim.Adam([each for each in method.parameters() if each.requires_grad], lr=0.1)
    losses = []
    for step in range(40):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 40)
        optimizer.zero_grad()
        method.training_step(BATCH, 0).backward()
        optimizer.step()
        losses.append(float(method.training_step(BATCH, 0).detach()))
    assert losses[-1] < losses[0] / 2
    after = features_at(method.encoder, "fp", "w8a8", "w2a8")
    assert torch.equal(after["fp"], before["fp"])
    assert torch.equal(after["w8a8"], before["w8a8"])  # it does not learn, and keeps what was found
    assert not torch.allclose(after["w2a8"], before["w2a8"], atol=1e-3)
    quant.settle_bit_widths(method.encoder)
    settled = features_at(method.encoder, "w2a8")["w2a8"]
    assert torch.allclose(settled, after["w2a8"], atol=1e-5)


def features_at(encoder, *bit_widths):
    found = {}
    for run in bit_widths:
        with quant.at(encoder, run), torch.no_grad():
            found[run] = encoder.eval()(BATCH["inputs"], None)[0]
    return found


def test_learned_scales_need_a_strategy_that_finds_what_is_unused():
    method = build(ssql=SSQLOptions(**SANDWICH, learn_scales=True))
    trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="use strategy ddp_find_unused_parameters_true"):
        method.check_run(trainer, None)
    other = {"strategy": "ddp_find_unused_parameters_true", "accelerator": "cpu", "logger": False}
    method.check_run(lightning.Trainer(**other, enable_checkpointing=False), None)
