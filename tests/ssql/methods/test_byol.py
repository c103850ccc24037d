import torch
import torch.nn.functional as F

from ssql.methods import BYOL
from ssql.training.draw import draw_bit_width


def drifted(model):
    """A teacher that is no longer the student."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_step_equals_a_naive_four_term_loss(build, naive, step, assert_same_gradients):
    loss, gradients = step(drifted(build(BYOL, seed=5)))

    model = drifted(build(BYOL, seed=5))
    views, plain = model.augmentation.views, naive(model, draw_bit_width(5, 0))
    p = [model.predictor(z) for z in plain.full(views)]
    q = [model.predictor(z) for z in plain.quantized(views)]
    t = [model.teacher.projector(model.teacher.encoder.embed(view)) for view in views]
    naive_loss = -sum(F.cosine_similarity(*pair).mean() for pair in zip(p + q, t[::-1] * 2, strict=True)) / 4
    naive_loss.backward()
    assert torch.allclose(loss, naive_loss, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_without_ssql_it_is_byol(build, step, assert_same_gradients):
    loss, gradients = step(drifted(build(BYOL, ssql=False)))
    model = drifted(build(BYOL, ssql=False))
    views = model.augmentation.views
    p = [model.predictor(model.projector(model.encoder.embed(view))) for view in views]
    t = [model.teacher.projector(model.teacher.encoder.embed(view)) for view in views]
    expected = -(F.cosine_similarity(p[0], t[1]).mean() + F.cosine_similarity(p[1], t[0]).mean()) / 2
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-6)
    assert_same_gradients(gradients, model, atol=1e-6)
