import pytest
import torch
from torch import nn

import quant
from quant.activation import QuantActivation


@pytest.mark.parametrize(
    ("layer", "shape", "time_axis"), [(nn.Linear(6, 4), (2, 5, 6), 1), (nn.Conv1d(6, 4, 1), (2, 6, 5), 2)]
)
def test_each_layer_knows_where_its_frames_are(layer, shape, time_axis):
    model = quant.prepare(nn.Sequential(layer), quant.Policy("w8"))
    values, mask = torch.rand(shape), torch.ones(2, 5, dtype=torch.bool)
    values.select(time_axis, 4)[1] = 100
    mask[1, 4] = False
    with quant.observe(model), quant.valid_frames(mask):
        model(values)
    assert model[0].activation_max.max() <= 1


def test_values_without_frames_are_observed_whole():
    model = quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy("w8"))
    with quant.observe(model), quant.valid_frames(torch.zeros(2, 5, dtype=torch.bool)):
        model(torch.full((2, 6), 3.0))
    assert model[0].activation_max.tolist() == [3.0] * 7


@pytest.mark.parametrize(
    ("first_layer", "run", "bits"),
    [
        ("w8", None, (2, 3, 4, 5, 6, 7, 8)),
        ("a6", None, (6,)),
        ("a32", None, ()),
        ("w8", "w4a5", (5,)),
        ("w8", "fp", ()),
    ],
)
def test_ranges_are_wanted_at_the_bits_that_can_run(first_layer, run, bits):
    layer: QuantActivation = quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy(first_layer))[0]
    assert layer.bits_in_use(run and quant.parse_bit_width(run)) == bits
