import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from ssql.methods import MoCo
from ssql.training.draw import draw_bit_width


class Batches:
    modality, largest_batch = "audio", 64


def test_step_equals_a_naive_moco_at_two_precisions(build, naive, step, assert_same_gradients):
    loss, gradients = step(build(MoCo, seed=5, queue_size=24))

    model = build(MoCo, seed=5, queue_size=24)
    query_view, key_view = model.augmentation.views
    plain = naive(model, draw_bit_width(5, 0))
    keys = F.normalize(model.teacher.projector(model.teacher.encoder.embed(key_view)), dim=1)
    terms = []
    for queries in (plain.full([query_view])[0], plain.quantized([query_view])[0]):
        for query, key in zip(F.normalize(queries, dim=1), keys, strict=True):
            positive = torch.exp(query @ key / 0.2)
            negatives = sum(torch.exp(query @ negative / 0.2) for negative in model.queue)
            terms.append(-torch.log(positive / (positive + negatives)))
    naive_loss = torch.stack(terms).mean()
    naive_loss.backward()
    assert torch.allclose(loss, naive_loss, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_queue_takes_the_keys_in_turn_and_is_in_the_checkpoint(build, step):
    model = build(MoCo, queue_size=20)
    before = model.queue.clone()
    keys = F.normalize(model.targets([None, (model.augmentation.views[1], None)], None)[0])
    step(model)
    assert torch.equal(model.queue[:12], before[8:])
    assert torch.allclose(model.queue[12:], keys, atol=1e-6)
    assert torch.equal(model.state_dict()["queue"], model.queue)


def test_impossible_settings_are_errors(build):
    with pytest.raises(ValueError, match="queue_size 32 does not hold the 64 keys"):
        build(MoCo, queue_size=32).check_run(Trainer(logger=False, accelerator="cpu"), Batches())
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        build(MoCo, temperature=0)
