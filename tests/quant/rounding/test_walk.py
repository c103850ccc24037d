"""The walk through a model: what each layer is rounded for, in which order, and where it can be stopped."""

import copy

import pytest
import torch
from torch import nn

import quant
from encoders import create_encoder
from quant.rounding.moments import Moments, best_float_weight, tokens_of

TOKENS = quant.Policy(activation_range="per_token")


@pytest.fixture(scope="module")
def speech():
    """A transformer, and log-mels of clips of two lengths."""
    torch.manual_seed(0)
    encoder = create_encoder("speech_transformer", width=32, depth=2, heads=2).eval()
    lengths = torch.tensor([16_000, 12_000])
    return encoder, [encoder.front_end(0.1 * torch.randn(2, 16_000), lengths) for _ in range(4)]


def rounded(encoder, batches, policy=TOKENS, blocks=True, bit_width="w3a8", **options):
    model = quant.prepare(copy.deepcopy(encoder), policy)
    quant.calibrate(model, batches, lambda each: model(*each))
    stages = model.stages if blocks else ()
    return model, list(quant.round_weights(model, bit_width, batches, lambda each: model(*each), stages, **options))


@torch.no_grad()
def distance(model, batches, bit_width="w3a8"):
    exact = torch.cat([model(*each)[0].flatten(0, 1) for each in batches])
    with quant.at(model, bit_width):
        found = torch.cat([model(*each)[0].flatten(0, 1) for each in batches])
    return float((found - exact).square().mean() / (exact - exact.mean(dim=0)).square().mean())


@pytest.mark.parametrize(
    "policy",
    [
        TOKENS,
        quant.Policy(shift=True, smooth=True, attention=True),
        quant.Policy(activation_range="per_token", granularity="per_group_32", layers={"*.attn.key": "/per_tensor"}),
    ],
)
def test_features_come_closer_and_blocks_only_save_time(speech, policy):
    encoder, batches = speech
    model, groups = rounded(encoder, batches, policy)
    nearest = quant.prepare(copy.deepcopy(encoder), policy)
    quant.calibrate(nearest, batches, lambda each: nearest(*each))
    assert distance(model, batches) < 0.1 * distance(nearest, batches)
    assert [row.layer for row in groups[2]] == [f"blocks.0.attn.{name}" for name in ("query", "key", "value")]
    whole, _ = rounded(encoder, batches, policy, blocks=False)
    with torch.no_grad(), quant.at(model, "w3a8"), quant.at(whole, "w3a8"):
        assert torch.equal(model(*batches[0])[0], whole(*batches[0])[0])
    with torch.no_grad():  # the weights and other bit-widths stay
        assert torch.equal(model(*batches[0])[0], encoder(*batches[0])[0])
        with quant.at(model, "w4a8"), quant.at(nearest, "w4a8"):
            assert torch.equal(model(*batches[0])[0], nearest(*batches[0])[0])


def test_what_was_stopped_goes_on(speech):
    encoder, batches = speech
    model, groups = rounded(encoder, batches)
    stopped = quant.prepare(copy.deepcopy(encoder), TOKENS)
    quant.calibrate(stopped, batches, lambda each: stopped(*each))
    walk = quant.round_weights(stopped, "w3a8", batches, lambda each: stopped(*each), stopped.stages)
    done = [next(walk) for _ in range(4)]
    walk.close()
    assert not stopped.training and "forward" not in vars(stopped.stages[0])
    rest = list(quant.round_weights(stopped, "w3a8", batches, lambda each: stopped(*each), stopped.stages, resume=True))
    assert done + rest == groups
    with torch.no_grad(), quant.at(model, "w3a8"), quant.at(stopped, "w3a8"):
        assert torch.equal(model(*batches[0])[0], stopped(*batches[0])[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(6, 8, 4, padding="same", padding_mode="circular"),
        nn.Conv2d(6, 8, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(1, 2)),
        nn.Linear(6, 8),
    ],
)
def test_tokens_are_what_the_weight_is_multiplied_by(layer):
    torch.manual_seed(0)
    shape = {nn.Linear: (3, 5, 6), nn.Conv1d: (3, 6, 9), nn.Conv2d: (3, 6, 7, 8)}[type(layer)]
    values = torch.randn(shape)
    quant.prepare(layer)
    layer.register_parameter("bias", None)
    with torch.no_grad():
        expected = layer(values)
    tokens = tokens_of(layer, values)
    rows = layer.weight.detach().flatten(1).chunk(len(tokens))
    products = torch.cat([part @ weight.T for part, weight in zip(tokens, rows, strict=True)], dim=1)
    found = expected.movedim(layer.channels_axis, -1).flatten(0, -2)
    torch.testing.assert_close(products, found, atol=1e-5, rtol=1e-4)


def test_the_best_float_weight_is_that_of_least_squares():
    torch.manual_seed(0)
    exact = torch.randn(1, 4000, 8) @ torch.randn(8, 8) + 30
    seen = exact + 0.3 * torch.randn_like(exact) + 2
    weight = torch.randn(3, 8)
    moments = Moments.like(exact)
    for part in range(4):
        moments.add(exact[:, part::4], seen[:, part::4])
    covariance, between = moments.covariances()
    found = best_float_weight(weight, covariance[0], between[0])
    # Ridge regression towards the weight, with a bias, written as least squares.
    pull = (0.01 * covariance[0].diagonal().mean() * 4000).sqrt()
    rows = torch.cat([seen[0] - seen[0].mean(0), pull * torch.eye(8)]).double()
    outputs = torch.cat([(exact[0] - exact[0].mean(0)) @ weight.T, pull * weight.T]).double()
    torch.testing.assert_close(found.double(), torch.linalg.lstsq(rows, outputs).solution.T, atol=1e-4, rtol=1e-4)
    means = moments.means()
    torch.testing.assert_close(means[0][0], exact[0].mean(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(means[1][0], seen[0].mean(0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("policy", [{}, {"shift": True, "granularity": "per_group_32"}])
def test_smoothed_layers_are_rounded_for_the_inputs_they_take(policy):
    """Channels of very different sizes, which lean on one another: rounding has to know which of them are divided."""
    torch.manual_seed(0)
    base = nn.Linear(64, 32)
    inputs = torch.randn(512, 64) @ torch.randn(64, 64) * torch.logspace(-1, 1, 64) + 1
    errors = []
    for smooth in (True, False):
        model = nn.Sequential(copy.deepcopy(base))
        quant.prepare(model, quant.Policy("/per_channel", smooth=smooth, **policy))
        quant.calibrate(model, [inputs])
        exact = model(inputs).detach()
        for _ in range(2):  # to the nearest, then for the outputs
            with torch.no_grad(), quant.at(model, "w3a8"):
                errors.append(float((model(inputs) - exact).square().mean()))
            rows = [row for group in quant.round_weights(model, "w3a8", [inputs]) for row in group]
        assert rows[0].error == pytest.approx(errors[-1] / float(exact.var(dim=0).mean()), rel=0.1)
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 1.2 * errors[3]


def test_bad_calls():
    model = quant.prepare(nn.Linear(4, 2), TOKENS)
    with pytest.raises(ValueError, match="full precision"):
        next(quant.round_weights(model, "fp", [torch.randn(2, 4)]))
    with pytest.raises(ValueError, match="got no batch"):
        next(quant.round_weights(model, "w4a8", []))
    with pytest.raises(quant.NotCalibratedError, match="no activation range"):
        next(
            quant.round_weights(
                quant.prepare(nn.Linear(4, 2), quant.Policy(first_layer="w4a8")), "w4a8", [torch.randn(2, 4)]
            )
        )
