import pytest
import torch

import quant
from ssql.methods import BYOL, MaskedPrediction, MoCo, SSQLOptions

METHODS = [BYOL, MoCo, MaskedPrediction]


@pytest.mark.parametrize("method", METHODS)
def test_teacher_is_a_full_precision_copy_unless_quantized_features_are_the_targets(build, method):
    model = build(method)
    assert not any(isinstance(module, quant.QuantLayer) for module in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    pairs = zip(model.teacher.encoder.parameters(), model.encoder.parameters(), strict=True)
    assert all(torch.equal(copy, own) and copy is not own for copy, own in pairs)
    reversed_model = build(method, ssql=SSQLOptions(targets="quantized"))
    assert quant.quant_layers(reversed_model.teacher.encoder).keys() == quant.quant_layers(model.encoder).keys()


def test_teacher_gives_full_precision_targets_while_the_student_is_quantized(build):
    model = build(BYOL)
    views = [(view, None) for view in model.augmentation.views]
    with quant.observe(model):
        model.branch(views)
    plain = model.targets(views, None)
    with quant.at(model, "w2a4"):
        assert all(torch.equal(*pair) for pair in zip(model.targets(views, None), plain, strict=True))
        assert not torch.allclose(model.branch(views).projections[0], plain[0], atol=1e-2)


@pytest.mark.parametrize("method", [BYOL, MoCo])
def test_reversed_targets_are_those_of_the_teacher_at_the_drawn_bits(build, method, step):
    seen = []
    model = build(method, ssql=SSQLOptions(targets="quantized", weight_bits=(2, 2), activation_bits=(4, 4)))
    model.after_step = lambda targets: seen.extend(targets)
    inputs = [(view, None) for view in model.augmentation.views]
    step(model)
    with quant.at(model, "w2a4"):
        expected = model.targets(inputs, None)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(seen, expected, strict=True))
    assert not torch.allclose(seen[0], model.targets(inputs, None)[0], atol=1e-2)


def test_teacher_follows_with_its_momentum_which_may_rise(build):
    model = build(BYOL, momentum=[0.9, 1.0])
    model.total_steps = 100
    assert [round(model.momentum_at(step), 6) for step in (0, 50, 100)] == [0.9, 0.95, 1.0]
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 1
    model.after_update()
    for old, new in zip(before, model.teacher.encoder.parameters(), strict=False):
        assert torch.allclose(new, 0.9 * old + 0.1 * (old + 1), atol=1e-6)


@pytest.mark.parametrize("momentum", [1.5, -0.1, [0.999, 0.9], [0.9, 0.95, 1.0]])
def test_impossible_momentum_is_an_error(build, momentum):
    with pytest.raises(ValueError, match="momentum must be one number from 0 to 1"):
        build(BYOL, momentum=momentum)
