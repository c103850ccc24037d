import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from written import to_file

import quant
from encoders import SpeechTransformer
from export.check.following import Followed, Place, _compare, _following, follow, probe
from export.graph.pipeline import Pipeline
from quant import parse_bit_width
from quant.grid.affine import token_qparams

INPUTS = (torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(0)), torch.tensor([60]))


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    policy = quant.Policy(shift=True)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=2, heads=2), policy).eval()
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder


@pytest.fixture(scope="module", params=["fp", "w8a8", "w2a2"])
def file(request, encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    return to_file(encoder, path, request.param, check=False), parse_bit_width(request.param)


@pytest.fixture
def exported(file):
    path, run = file
    return onnx.load(path), run


def change(proto: onnx.ModelProto, name: str) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    values = 3 * np.random.default_rng(0).standard_normal(tensor.dims)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def departure(proto: onnx.ModelProto, encoder: SpeechTransformer, run: quant.BitWidth) -> str | None:
    probed = probe(proto, encoder, run, floats=True)
    return follow(probed, Pipeline(encoder), run, INPUTS, 1e-6).departure(False, 1e-6)


def test_a_good_file_departs_nowhere_at_any_bit_width(encoder, exported):
    proto, run = exported
    assert departure(proto, encoder, run) is None


def test_the_first_of_two_wrong_layers_is_named(encoder, exported):
    proto, run = exported
    change(proto, "encoder.blocks.0.mlp.0.bias")
    change(proto, "encoder.blocks.1.attn.out.bias")
    assert (
        departure(proto, encoder, run) == "features depart after layer blocks.0.mlp.0 and before layer blocks.0.mlp.2"
    )


def test_values_at_an_edge_may_fall_to_the_other_side_and_no_others(encoder):
    layer, run = encoder.blocks[0].mlp[0], parse_bit_width("w4a4")
    scale, _ = layer.activation_qparams(4)

    def compare(steps: float, found: int) -> tuple[bool, int]:
        followed = Followed()
        values = torch.tensor([1.0, steps]) * scale
        equal = _compare(followed, layer, run, values, torch.tensor([1.0, found]), scale, bias=0.0)
        assert followed.roundings == 2
        return equal, followed.at_edge

    assert compare(1.2, 1) == (True, 0)
    assert compare(1.499, 2) == (True, 1)
    assert compare(2.501, 2) == (True, 1)
    assert compare(1.3, 2) == (False, 0)
    assert compare(1.499, 3) == (False, 0)


def test_a_token_that_lost_an_end_to_rounding_is_not_given_another_range():
    """Integers from 0 to 254: -100.5 and 154.5 round to even numbers, and 255 steps become 254."""
    torch.manual_seed(0)
    policy = quant.Policy(first_layer="w8a8", activation_range="per_token")
    model = quant.prepare(torch.nn.Sequential(torch.nn.Linear(4, 3)), policy)
    run = parse_bit_width("w8a8")
    values = torch.tensor([[[-100.5, 154.5, 0.3, 77.2]]])
    scale, zero_point = token_qparams(values, 8)
    integers = (values / scale).round() + zero_point
    assert (integers.min(), integers.max()) == (0, 254)
    tensors = {"integers": integers, "scale": scale, "zero_point": zero_point}
    places = {"0": Place("integers", "scale", "zero_point")}
    followed = Followed()
    with torch.no_grad(), quant.at(model, run):
        expected = model(values)
        with _following(places, model, run, tensors, followed, 1e-6):
            found = model(values)
        again = model(values)
    assert torch.equal(found, expected) and torch.equal(again, expected)
    assert followed.equal == {"0": True} and followed.at_edge == 0
