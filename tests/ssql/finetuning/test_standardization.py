import copy

import torch

from encoders import Head
from ssql.finetuning.standardization import Standardization


def test_mean_and_deviation_are_those_of_real_frames():
    torch.manual_seed(0)
    frames, lengths = 7 + 3 * torch.randn(2, 5, 4), torch.tensor([5, 2])
    frames[1, 2:] = 1000  # padding
    embeddings = torch.randn(3, 4)
    found = Standardization.of([(frames, lengths), (embeddings, None)])
    real = torch.cat([frames[0], frames[1, :2], embeddings]).double()
    assert torch.allclose(found.mean.double(), real.mean(dim=0))
    assert torch.allclose(found.std.double(), real.std(dim=0, correction=0))
    assert torch.allclose(found(real.float()).mean(dim=0), torch.zeros(4), atol=1e-6)


def test_a_feature_that_never_moves_is_not_blown_up():
    features = torch.randn(50, 3)
    features[:, 1] = 2
    found = Standardization.of([(features, None)])
    assert torch.isclose(found.std[1], 0.01 * features.std(dim=0, correction=0).mean())
    assert torch.equal(Standardization.of([(torch.ones(5, 3), None)]).std, torch.ones(3))


def test_a_head_says_the_same_on_either_side():
    torch.manual_seed(0)
    head = Head("regression", 4, ["pitch"], units=["Hz"])
    features = 20 + torch.randn(9, 4)
    standardization = Standardization.of([(features, None)])
    moved = copy.deepcopy(head)
    standardization.move_out_of(moved)
    assert torch.allclose(moved(standardization(features)), head(features), atol=1e-4)
    standardization.move_into(moved)
    assert torch.allclose(moved.linear.weight, head.linear.weight, atol=1e-6)
    assert torch.allclose(moved.linear.bias, head.linear.bias, atol=1e-4)
