import pytest
import torch
import torch.nn.functional as F

import quant
from ssql.methods import NonFiniteLossError, SimSiam, SSQLOptions
from ssql.methods.method import join
from ssql.methods.objectives import feature_std, symmetric_negative_cosine
from ssql.training.draw import draw_bit_width


def test_step_equals_a_naive_ssql_written_with_hooks_and_swapped_weights(build, naive, step, assert_same_gradients):
    loss, gradients = step(build(SimSiam, seed=5))

    model = build(SimSiam, seed=5)
    views, plain = model.augmentation.views, naive(model, draw_bit_width(5, 0))
    z = plain.full(views)
    p = [model.predictor(value) for value in z]
    q = [model.predictor(value) for value in plain.quantized(views)]
    terms = [
        F.cosine_similarity(prediction, target.detach()).mean()
        for prediction, target in ((p[0], z[1]), (p[1], z[0]), (q[0], z[1]), (q[1], z[0]))
    ]
    naive_loss = -sum(terms) / 4
    naive_loss.backward()
    assert torch.allclose(loss, naive_loss, atol=1e-5)
    assert_same_gradients(gradients, model)


def test_without_ssql_it_is_simsiam(build):
    model = build(SimSiam, ssql=False)
    loss = model.training_step({"inputs": None, "lengths": None}, 0)
    twin = build(SimSiam, ssql=False)
    z = [twin.projector(twin.encoder.embed(view)) for view in twin.augmentation.views]
    p = [twin.predictor(value) for value in z]
    expected = -(F.cosine_similarity(p[0], z[1].detach()).mean() + F.cosine_similarity(p[1], z[0].detach()).mean()) / 2
    assert torch.allclose(loss, expected)


def test_sequential_differentiation_gives_the_same_loss_and_gradients(build):
    results = []
    for sequential in (True, False):
        model = build(SimSiam, ssql=SSQLOptions(sequential=sequential))
        loss = model.training_step({"inputs": None, "lengths": None}, 0)
        (loss / 3).backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    (loss, gradients), (other_loss, other_gradients) = results
    assert loss == other_loss
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, other_gradients, strict=True))


def test_views_together_are_views_apart_but_for_batch_norm(build):
    views = [(torch.randn(2, 80, 20), torch.tensor([20, 12])), (torch.randn(2, 80, 16), torch.tensor([16, 15]))]
    inputs, lengths = join(views)
    assert inputs.shape == (4, 80, 20)
    assert lengths.tolist() == [20, 12, 16, 15]
    encoder = build(SimSiam).encoder.eval()
    apart = torch.cat([encoder.embed(*view) for view in views])
    assert torch.allclose(encoder.embed(inputs, lengths), apart, atol=1e-5)
    model = build(SimSiam, views="together")
    branch = model.branch([(view, None) for view in model.augmentation.views])
    assert [z.shape for z in branch.projections] == [(8, 32)] * 2


@pytest.mark.parametrize("statistics", ["full_precision", "all"])
def test_quantized_pass_leaves_batch_norm_statistics_alone_unless_asked(build, statistics):
    means = []
    for ssql in (False, SSQLOptions(batch_norm_statistics=statistics)):
        model = build(SimSiam, ssql=ssql)
        model.training_step({"inputs": None, "lengths": None}, 0)
        means.append(model.projector[1].running_mean)
    assert torch.equal(*means) == (statistics == "full_precision")


def test_nan_loss_names_the_step_and_the_losses(build):
    model = build(SimSiam)
    model.augmentation.views[0][0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 0 .*loss_fp nan"):
        model.training_step({"inputs": None, "lengths": None}, 0)


def test_wrong_bit_ranges_are_errors():
    with pytest.raises(ValueError, match="weight_bits must be two numbers from 2 to 8"):
        SSQLOptions(weight_bits=(1, 8))
    with pytest.raises(ValueError, match="smallest first"):
        SSQLOptions(activation_bits=(8, 4))


def test_loss_and_collapse_indicator():
    z = [torch.randn(64, 32) for _ in range(2)]
    assert torch.allclose(symmetric_negative_cosine(z, z[::-1]), torch.tensor(-1.0))
    assert feature_std(torch.ones(8, 16)) < 1e-3
    assert feature_std(torch.randn(512, 64)) > 0.9


def test_consistency_adds_the_relative_distance_of_quantized_features_and_its_gradient(build, step):
    plain, added = build(SimSiam), build(SimSiam, ssql=SSQLOptions(consistency=0.5))
    logs = {}
    added.log_dict = lambda values, **_: logs.update(values)
    (loss, gradients), (loss_added, gradients_added) = step(plain), step(added)
    assert logs["feature_gap"] > 0
    assert torch.allclose(loss_added, loss + 0.5 * logs["feature_gap"])

    views = [(view, None) for view in added.augmentation.views]
    with torch.no_grad():
        full = torch.cat([added.encoder.embed(*view) for view in views])
    with quant.at(added.encoder, draw_bit_width(0, 0)):
        quantized = torch.cat([added.encoder.embed(*view) for view in views])
    by_hand = 0.5 * (quantized - full).square().mean() / full.var(dim=0, correction=0).mean()
    name = "encoder.conv2.weight"
    expected = torch.autograd.grad(by_hand, added.encoder.conv2.weight)[0]
    assert torch.allclose(gradients_added[name] - gradients[name], expected, atol=1e-5)


def test_consistency_below_zero_is_an_error():
    with pytest.raises(ValueError, match="consistency must be 0 or more, got -1"):
        SSQLOptions(consistency=-1)
