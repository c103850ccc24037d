import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.grid.weights import GRANULARITIES, WEIGHT_RATIOS, as_rows, best_clip_ratio


def layer_with(granularity: str, weight_range: str = "min_max", shape=(6, 64)) -> quant.QuantLayer:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    policy = quant.Policy(f"a32/{granularity}", weight_range=weight_range)
    return quant.prepare(nn.Sequential(layer), policy)[0]


def numpy_fake(row: np.ndarray, scale: float, bits: int) -> np.ndarray:
    return np.clip(np.rint(row / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def numpy_scale(row: np.ndarray, bits: int, weight_range: str) -> np.float32:
    """The published scale of one row, or the best of it and its fractions, tried in turn."""
    whole = np.abs(row).max() * np.float32(2) / np.float32(2**bits - 1)
    if weight_range == "min_max":
        return whole
    scales = [np.float32(whole * np.float32(ratio)) for ratio in WEIGHT_RATIOS]
    errors = [np.square(numpy_fake(row.astype(np.float64), scale, bits) - row).sum() for scale in scales]
    return scales[int(np.argmin(errors))]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("weight_range", ["min_max", "mse"])
@pytest.mark.parametrize("granularity", GRANULARITIES[:4])
def test_each_group_of_weights_has_its_own_scale(granularity, weight_range, bits):
    layer = layer_with(granularity, weight_range)
    weight = layer.weight.detach().numpy()
    size = {"per_tensor": weight.size, "per_channel": 64}.get(granularity) or int(granularity.split("_")[-1])
    rows = weight.reshape(-1, size)
    scales = np.array([numpy_scale(row, bits, weight_range) for row in rows])
    integers, scale = layer.weight_integers(quant.BitWidth(bits))
    assert (integers.dtype, integers.shape) == (torch.int8, layer.weight.shape)
    expected = np.tile(scales, (6, 1)) if granularity == "per_tensor" else scales.reshape(6, -1)
    assert np.allclose(scale, expected, rtol=1e-6)
    by_hand = np.stack([numpy_fake(row, s, bits) for row, s in zip(rows, scales, strict=True)]).reshape(weight.shape)
    with quant.at(layer, "w4a32"):
        layer.rule = quant.policy.LayerRule(bits, 32, granularity, weight_range)
        assert np.allclose(layer.quantized_weight().detach(), by_hand, rtol=1e-5)
    values = integers.reshape(6, scale.shape[1], -1) * scale.unsqueeze(2)
    assert torch.allclose(values.view_as(layer.weight), torch.from_numpy(by_hand), rtol=1e-5)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group_32"])
def test_convolutions_keep_their_layout(granularity):
    layer = layer_with(granularity, shape=(4, 32, 3, 3)).to(memory_format=torch.channels_last)
    with quant.at(layer, "w4a32"):
        last = layer.quantized_weight()
    layer.to(memory_format=torch.contiguous_format)
    with quant.at(layer, "w4a32"):
        assert torch.equal(last, layer.quantized_weight())
    assert last.is_contiguous(memory_format=torch.channels_last) or granularity == "per_group_32"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 3)])
def test_clipped_gradient_equals_straight_through_rounding_written_out(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    by_output = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ratio = torch.linspace(0.3, 0.9, len(weight)).view(-1, *[1] * (len(shape) - 1))
    largest = weight.abs().amax(dim=tuple(range(1, len(shape))), keepdim=True)
    scale = largest * ratio * 2 / (2**bits - 1)
    steps = weight / scale
    low, high = quant.integer_range(bits, signed=True)
    integers = steps + (steps.round() - steps).detach()
    # The ends of the grid belong to it: torch's own clamp gives them no gradient.
    inside = (integers >= low) & (integers <= high)
    naive = torch.where(inside, integers, integers.detach().clamp(low, high)) * scale
    fake = quant.fake_quantize_weight(weight, bits, ratio)
    assert torch.allclose(fake, naive, atol=1e-6)
    found, expected = (torch.autograd.grad((out * by_output).sum(), weight)[0] for out in (fake, naive))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_ratio_of_one_is_the_min_max_grid_and_gradient():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradients = []
    for ratio in (None, torch.ones(6, 1)):
        fake = quant.fake_quantize_weight(weight, 3, ratio)
        gradients.append(torch.autograd.grad((fake * torch.arange(60.0).view(6, 10)).sum(), weight)[0])
    assert torch.allclose(*gradients, atol=1e-4)


@pytest.mark.parametrize("columns", [90, 9216])
def test_clipping_never_loses_and_zero_rows_stay_zero(columns):
    weight = torch.randn(8, columns, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    for bits in range(2, 9):
        clipped, whole = (
            quant.fake_quantize_weight(weight, bits, ratio) for ratio in (best_clip_ratio(weight, bits), None)
        )
        assert (clipped - weight).square().sum() <= (whole - weight).square().sum()
        assert torch.equal(clipped[3], weight[3])


def test_smaller_groups_are_never_further_from_the_weight():
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).pow(3)
    errors = []
    for granularity in ("per_tensor", "per_channel", "per_group_128", "per_group_64", "per_group_32"):
        rows = as_rows(weight, granularity)
        errors.append((quant.fake_quantize_weight(rows, 4) - rows).square().sum())
    assert errors == sorted(errors, reverse=True)


def test_groups_that_do_not_divide_name_the_layer_and_the_way_out():
    def model():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1))

    with pytest.raises(
        ValueError, match=r"layer '1' has 72 inputs, which groups of 32 do not divide.*'1'|/per_channel"
    ):
        quant.prepare(model(), quant.Policy(granularity="per_group_32"))
    fine = quant.Policy(granularity="per_group_32", layers={"1": "/per_channel", "2": "fp"})
    prepared = quant.prepare(model(), fine)
    scales = [prepared[i].weight_integers(quant.BitWidth(4))[1].shape for i in (0, 1, 3)]
    assert scales == [(8, 1), (4, 1), (4, 1)]


def test_policy_words_are_checked_and_saved():
    with pytest.raises(ValueError, match="unknown granularity 'per_group_16': write one of per_tensor, per_channel"):
        quant.Policy(granularity="per_group_16")
    with pytest.raises(ValueError, match="unknown weight_range 'max': write one of min_max, mse"):
        quant.Policy(weight_range="max")
    with pytest.raises(ValueError, match=r"'head': unknown grid 'per_row'"):
        quant.Policy(layers={"head": "w4/per_row"})
    with pytest.raises(ValueError, match=r"got 1: one bit with a sign holds only -1 and 0"):
        quant.Policy(layers={"head": "w1a8"})
    policy = quant.Policy(granularity="per_group_64", weight_range="mse", layers={"head": "w4/per_tensor"})
    assert quant.Policy(**policy.to_dict()) == policy
    rule = policy.rules(["stem", "body", "head"])
    assert [rule[name].granularity for name in rule] == ["per_channel", "per_group_64", "per_tensor"]
    assert rule["head"].weight_range == "mse"
