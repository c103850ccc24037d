import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from encoders import SpeechTransformer


class OneAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)
        self.products = quant.AttentionProducts(8)

    def forward(self, qkv, mask):
        return self.products(*qkv, mask[:, None, None, :])


@pytest.fixture
def qkv() -> torch.Tensor:
    return torch.randn(3, 2, 2, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return mask


def on_grid(values: torch.Tensor, seen: torch.Tensor, bits: int) -> torch.Tensor:
    return quant.fake_quantize_activation(values, *quant.activation_qparams(*seen.aminmax(), bits), bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_all_four_tensors_are_on_their_grids(qkv, mask, bits):
    qkv[1:] += torch.linspace(-3, 3, 16).view(2, 2, 1, 4).unsqueeze(1)  # keys and values hover around means
    model = quant.prepare(OneAttention(), quant.Policy(attention=True))
    with quant.observe(model), quant.valid_frames(mask):
        observed = model(qkv, mask)
    assert torch.allclose(observed, model(qkv, mask), atol=1e-6)
    with quant.at(model, f"w8a{bits}"):
        found = model(qkv, mask)

    keep = mask[:, None, :, None]
    frames = mask.sum()
    k_mean, v_mean = ((x * keep).sum((0, 2), keepdim=True) / frames for x in qkv[1:])
    spread = ((qkv[2] - v_mean) * keep).abs().amax((0, 2), keepdim=True)
    keys, values = qkv[1] - k_mean, (qkv[2] - v_mean) / spread
    q, k, v = (on_grid(x, x * keep, bits) for x in (qkv[0], keys, values))
    scores = (q @ k.transpose(2, 3) / math.sqrt(4)).masked_fill(~mask[:, None, None, :], -torch.inf)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (exponentials * (2**bits - 1)).round() / (2**bits - 1)
    expected = rounded @ (v * spread) / exponentials.sum(-1, keepdim=True) + v_mean
    assert torch.allclose(found, expected, atol=1e-5)


def test_hundreds_of_keys_keep_their_tail():
    """Where every probability is below the first step of the grid, as in an encoder that looks at 30 s."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 1, 2, 1000, 4, generator=generator)
    value = value + 5
    mask = torch.ones(1, 1000, dtype=torch.bool)
    model = quant.prepare(OneAttention(), quant.Policy(attention=True))
    batch = torch.stack([query, key, value])
    quant.calibrate(model, [batch], lambda batch: model(batch, mask))
    with torch.no_grad(), quant.at(model, "w8a8"):
        found = model(batch, mask)
    exact = F.scaled_dot_product_attention(query, key, value)
    assert (exact - found).square().mean() / exact.var() < 1e-3
    probabilities = (query @ key.transpose(2, 3) / math.sqrt(4)).softmax(-1)
    on_the_grid_of_probabilities = on_grid(probabilities, probabilities, 8) @ value
    assert (exact - on_the_grid_of_probabilities).square().mean() / exact.var() > 1


def test_another_mean_of_the_keys_changes_no_full_precision_feature_and_no_padding_counts(qkv, mask):
    model = quant.prepare(OneAttention(), quant.Policy(attention=True))
    far = qkv.masked_fill(~mask[:, None, :, None], 99)
    with quant.valid_frames(mask):
        quant.calibrate(model, [far], lambda batch: model(batch, mask))
    products = model.products
    means = (qkv[1] * mask[:, None, :, None]).sum((0, 2)) / mask.sum()
    assert torch.allclose(products.key.activation_shift.view(2, 4), means, atol=1e-5)
    assert products.key.activation_spread is None
    with quant.at(model, "w8a8"):
        found, alone = model(far, mask), model(qkv, mask)
    keep = mask[:, None, :, None].expand_as(found)
    assert torch.allclose(found[keep], alone[keep], atol=1e-5)


def test_gradients_reach_query_key_and_value(qkv, mask):
    model = quant.prepare(OneAttention(), quant.Policy(attention=True))
    quant.calibrate(model, [qkv], lambda batch: model(batch, mask))
    qkv.requires_grad_()
    with quant.at(model, "w4a4"):
        model(qkv, mask).square().sum().backward()
    assert (qkv.grad.flatten(1).abs().sum(1) > 0).all()


def test_off_and_in_full_precision_it_is_torchs_attention(qkv, mask):
    expected = F.scaled_dot_product_attention(*qkv, attn_mask=mask[:, None, None, :])
    for policy in (None, quant.Policy(attention=True), quant.Policy(attention=True, layers={"products.*": "a32"})):
        model = OneAttention()
        if policy:
            quant.prepare(model, policy)
        assert torch.equal(model(qkv, mask), expected)
    with quant.at(model, "w4a4"):  # kept in float by name
        assert torch.equal(model(qkv, mask), expected)


def test_a_clip_without_a_frame_stays_finite(qkv):
    model = quant.prepare(OneAttention(), quant.Policy(attention=True))
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    with quant.observe(model):
        assert model(qkv, nothing).isfinite().all()


def test_the_default_policy_leaves_state_and_features_of_a_speech_encoder_alone():
    torch.manual_seed(0)
    plain = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2))
    assert not [key for key in plain.state_dict() if "products" in key]
    with_products = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(attention=True))
    names = set(quant.quant_activations(with_products)) - set(quant.quant_layers(with_products))
    assert names == {f"blocks.0.attn.products.{x}" for x in ("query", "key", "exponentials", "value")}


def test_a_model_without_such_products_is_an_error():
    with pytest.raises(ValueError, match="Sequential has no attention whose products can be quantized"):
        quant.prepare(nn.Sequential(nn.Linear(2, 2)), quant.Policy(attention=True))


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_in_bfloat16_with_gradients_it_is_the_same_product(mask):
    torch.manual_seed(0)
    products = quant.AttentionProducts(32)
    query, key, value = (torch.randn(2, 4, 9, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    allowed = torch.rand(2, 1, 9, 9) < 0.7
    allowed[..., 0] = True
    bias = torch.where(allowed, 0.0, -1e4)
    given = {None: None, "bool": allowed, "float": bias}[mask]
    found = products(query, key, value, given)
    exact = [each.detach().float().requires_grad_() for each in (query, key, value)]
    expected = nn.functional.scaled_dot_product_attention(*exact, attn_mask=None if given is None else bias)
    assert torch.allclose(found.float(), expected, atol=0.02)
    weights = torch.randn_like(expected)
    (found.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip((query, key, value), exact, strict=True):
        assert (mine.grad.float() - theirs.grad).norm() < 0.02 * theirs.grad.norm()
