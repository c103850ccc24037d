import pytest
import torch

import quant
from encoders import SpeechTransformer, VisionEncoder
from ssql.methods import Distillation, SSQLOptions


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
