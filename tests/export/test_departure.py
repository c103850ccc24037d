import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import export
import quant
from encoders import SpeechTransformer
from export.departure import _but_for_ties, find_departure
from export.model import Pipeline
from quant import parse_bit_width

INPUTS = (torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(0)), torch.tensor([60]))


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    policy = quant.Policy(shift=True)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=2, heads=2), policy).eval()
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder


@pytest.fixture(params=["fp", "w8a8", "w4a8", "w2a2"])
def exported(request, encoder, tmp_path):
    path = export.to_onnx(encoder, tmp_path / "encoder.onnx", request.param, check=False)
    return onnx.load(path), parse_bit_width(request.param)


def change(proto: onnx.ModelProto, name: str) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    values = 3 * np.random.default_rng(0).standard_normal(tensor.dims)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def test_a_good_file_departs_nowhere_at_any_bit_width(encoder, exported):
    proto, run = exported
    assert find_departure(proto, Pipeline(encoder), run, [INPUTS], 0.9999) is None


def test_the_first_of_two_wrong_layers_is_named(encoder, exported):
    proto, run = exported
    change(proto, "encoder.blocks.0.mlp.0.bias")
    change(proto, "encoder.blocks.1.attn.out.bias")
    departure = find_departure(proto, Pipeline(encoder), run, [INPUTS], 0.9999)
    assert (departure.after, departure.before) == ("blocks.0.mlp.0", "blocks.0.mlp.2")
    assert str(departure) == "features depart after layer blocks.0.mlp.0 and before layer blocks.0.mlp.2"


def test_values_at_an_edge_are_as_found_and_no_others(encoder):
    layer = encoder.blocks[0].mlp[0]
    scale, zero_point = layer.activation_qparams(4)
    steps = torch.tensor([1.49, 1.49, 1.3, 2.51, 1.0])
    found = torch.tensor([2.0, 3.0, 2.0, 2.0, 1.0])  # a tie, two steps, no edge, a tie, equal
    result = _but_for_ties(layer, 4, (steps - 5) * scale, (found - 5) * scale)
    assert (result / scale + 5).round().tolist() == [2, 1, 1, 2, 1]
    assert zero_point >= 5
