import torch
import torch.nn.functional as F

from ssql.methods import SimCLR
from ssql.methods.objectives import nt_xent
from ssql.training.draw import draw_bit_width


def naive_nt_xent(anchors, candidates, temperature):
    """anchors and candidates: [view][item] vectors."""
    losses = []
    for view in range(2):
        for item, anchor in enumerate(anchors[view]):
            similarity = {
                (other_view, other): torch.exp(F.cosine_similarity(anchor, candidate, dim=0) / temperature)
                for other_view in range(2)
                for other, candidate in enumerate(candidates[other_view])
                if (other_view, other) != (view, item)
            }
            losses.append(-torch.log(similarity[1 - view, item] / sum(similarity.values())))
    return torch.stack(losses).mean()


def test_step_equals_a_naive_simclr_at_two_precisions(build, naive, step, assert_same_gradients):
    loss, gradients = step(build(SimCLR, seed=5))

    model = build(SimCLR, seed=5)
    views, plain = model.augmentation.views, naive(model, draw_bit_width(5, 0))
    z = plain.full(views)
    q = plain.quantized(views)
    candidates = [value.detach() for value in z]
    naive_loss = (naive_nt_xent(z, z, 0.5) + naive_nt_xent(q, candidates, 0.5)) / 2
    naive_loss.backward()
    assert torch.allclose(loss, naive_loss, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_without_ssql_it_is_simclr(build, step, assert_same_gradients):
    loss, gradients = step(build(SimCLR, ssql=False, temperature=0.1))
    model = build(SimCLR, ssql=False, temperature=0.1)
    z = [model.projector(model.encoder.embed(view)) for view in model.augmentation.views]
    expected = naive_nt_xent(z, z, 0.1)
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert_same_gradients(gradients, model, atol=1e-5)


def test_half_of_the_anchors_against_all_candidates_is_half_of_the_loss():
    z = [torch.randn(6, 8) for _ in range(2)]
    halves = [nt_xent([view[first : first + 3] for view in z], z, 0.5, first) for first in (0, 3)]
    assert torch.allclose(sum(halves) / 2, nt_xent(z, z, 0.5))
