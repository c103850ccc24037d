import copy

import numpy as np
import onnx
import pytest
import torch
from written import to_file

import export
import quant
from encoders import SpeechTransformer
from export.graph.packing import FIELDS, pack_fields, pack_weights, unpack_fields, weight_name
from export.graph.qdq import to_qdq


@pytest.mark.parametrize("bits", FIELDS)
def test_fields_there_and_back(bits):
    integers = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 16)).astype(np.int8)
    integers[0, :2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    fields = pack_fields(integers, bits)
    assert sum(field.nbytes for field in fields) == 80 * bits / 8
    assert np.array_equal(unpack_fields(fields, bits).reshape(5, 16), integers)


def test_the_first_integer_is_in_the_lowest_bits():
    low, top = pack_fields(np.array([-4, -3, -2, -1, 0, 1, 2, 3], np.int8), 3)
    assert low.tolist() == [0b11100100, 0b11100100]
    assert top.tolist() == [0b11110000]


@pytest.fixture(scope="module")
def mixed() -> SpeechTransformer:
    """A layer of each width, one of them with a number of weights that 8 does not divide."""
    torch.manual_seed(0)
    bits = {"*.query": "w2", "*.key": "w3", "*.value": "w5", "*.out": "w6", "*.mlp.0": "w7", "*.mlp.2": "w8"}
    policy = quant.Policy(layers=bits | {"conv2": "w3"})
    encoder = quant.prepare(SpeechTransformer(width=18, depth=1, heads=1), policy)
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder.eval()


def test_every_width_is_unpacked_by_the_runtime_when_it_starts(mixed, tmp_path):
    path = to_file(mixed, tmp_path / "mixed.onnx", "w4a8")
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    kinds = {name: stored_as(stored, weight_name(name)) for name in quant.quant_layers(mixed)}
    assert kinds == {
        "conv1": "int8", "conv2": "int4", "blocks.0.attn.query": "int4", "blocks.0.attn.key": "int4",
        "blocks.0.attn.value": "int8", "blocks.0.attn.out": "int8",
        "blocks.0.mlp.0": "4 + 2 + 1", "blocks.0.mlp.2": "int8",
    }  # fmt: skip
    assert export.integer_operators(path)["Gather"] == 1  # the windows of conv2: all tables are looked up before
    assert export.verify(path, mixed).first_difference is None


SIZE = 18 * 72


def stored_as(stored: dict[str, onnx.TensorProto], name: str) -> str:
    fields = [stored[key].dims[0] for key in stored if key.startswith(f"{name}.field_")]
    if fields:
        return " + ".join(str(8 * size // SIZE) for size in fields)
    return "int4" if f"{name}.int4" in stored else "int8"


def test_a_lost_weight_is_named(mixed):
    layers = to_qdq(copy.deepcopy(mixed), quant.BitWidth(4, 8))
    with pytest.raises(RuntimeError, match=r"lost the integers of encoder\.conv2"):
        pack_weights(onnx.ModelProto(), layers)
