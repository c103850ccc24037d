import copy

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from written import to_file

import export
import quant
from encoders import SpeechTransformer, load_encoder, save_encoder
from export.check.following import quotient
from export.check.stored import first_difference

W4A4, W4A8 = quant.BitWidth(4, 4), quant.BitWidth(4, 8)


def speech(policy: quant.Policy, observer: str = "mse") -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), policy)
    mel, _ = encoder.front_end(torch.randn(4, 16_000) * torch.rand(4, 1))
    quant.calibrate(encoder, [mel], observer=observer)
    return encoder.eval()


def test_clipped_ranges_weights_shifts_and_attention_are_those_of_the_file(tmp_path):
    policy = quant.Policy(weight_range="mse", attention=True, shift=True, layers={"*.mlp.2": "/per_tensor"})
    encoder = speech(policy)
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a4")
    assert export.integer_operators(path)["MatMulIntegerToFloat"] == 1 + 6 + 2
    for name in ("blocks.0.mlp.2", "blocks.0.attn.products.key"):
        changed = copy.deepcopy(encoder)
        changed.get_submodule(name).activation_max[2] *= 1.1
        assert first_difference(onnx.load(path), quant.quant_activations(changed), W4A4) == name
    encoder.blocks[0].mlp[2].activation_shift[3] += 0.1
    assert first_difference(onnx.load(path), quant.quant_activations(encoder), W4A4) == "blocks.0.mlp.2"


@pytest.mark.parametrize(("bit_width", "shift"), [("w8a8", False), ("w4a8", True)])
def test_smoothed_layers_are_saved_and_what_the_file_has(tmp_path, bit_width, shift):
    encoder = speech(quant.Policy(smooth=True, shift=shift))
    run = quant.parse_bit_width(bit_width)
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    mel = torch.randn(1, 80, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), quant.at(encoder, bit_width), quant.at(loaded, bit_width):
        assert torch.equal(loaded(mel)[0], encoder(mel)[0])

    path = to_file(loaded, tmp_path / "encoder.onnx", bit_width)  # verified
    assert export.integer_operators(path)["MatMulIntegerToFloat"] == 1 + 6
    proto = onnx.load(path)
    # Query, key and value take one tensor and share a spread, hence the same integers.
    assert [node.op_type for node in proto.graph.node].count("QuantizeLinear") == 5
    assert first_difference(proto, quant.quant_activations(encoder), run) is None
    if bit_width == "w8a8":  # float weights are stored times the spread, and rounded so
        to_file(loaded, tmp_path / "halves.onnx", "w32a8", float16=True)
    encoder.blocks[0].mlp[2].activation_spread[3] *= 1.001
    assert first_difference(proto, quant.quant_activations(encoder), run) == "blocks.0.mlp.2"


def test_learned_steps_are_those_of_the_file(tmp_path):
    encoder = speech(quant.Policy())
    quant.learn_steps(encoder, "w4a8")
    with torch.no_grad():
        encoder.blocks[0].mlp[0].weight_step.mul_(0.9)
        encoder.blocks[0].mlp[0].activation_step.mul_(1.1)
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a8")
    with torch.no_grad():
        encoder.blocks[0].mlp[0].weight_step.mul_(0.9)
    assert first_difference(onnx.load(path), quant.quant_activations(encoder), W4A8) == "blocks.0.mlp.0"


def test_ranges_of_tokens_are_found_in_the_file_as_in_torch(tmp_path):
    policy = quant.Policy(
        attention=True, shift=True, activation_range="per_token",
        layers={"*.mlp.0": "/per_group_32", "*.mlp.2": "a32", "*.attn.out": "/static"},
    )  # fmt: skip
    encoder = speech(policy)
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a7")  # verified
    proto = onnx.load(path)
    operators = [node.op_type for node in proto.graph.node]
    # Second convolution; query, key and value, which take the same integers; the two products of attention.
    assert (operators.count("MatMulInteger"), operators.count("MatMul")) == (1 + 3 + 2, 3)
    layers = quant.quant_activations(encoder)
    run = quant.parse_bit_width("w4a7")
    assert first_difference(proto, layers, run) is None
    top = next(node.input[2] for node in proto.graph.node if node.op_type == "Clip" and len(node.input) == 3
               and quotient(node, {name: it for it in proto.graph.node for name in it.output}))  # fmt: skip
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    stored[top].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored[top]) + 1, top))
    assert first_difference(proto, layers, run) == "blocks.0.attn.query"
    proto = onnx.load(path)
    with torch.no_grad():
        encoder.blocks[0].attn.key.weight[0, 0] *= 3
        assert first_difference(proto, layers, run) == "blocks.0.attn.key"


def test_groups_beside_integer_activations_multiply_in_float(tmp_path):
    encoder = speech(quant.Policy(granularity="per_group_32", layers={"conv2": "/per_channel"}))
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a8")  # verified
    # The second convolution, and the layers that one group spans: that is a scale for each channel.
    assert export.integer_operators(path)["MatMulIntegerToFloat"] == 1 + 5


@pytest.mark.parametrize("bit_width", ["w4a32", "w8a32", "w2a32"])
def test_groups_beside_float_activations_become_the_runtimes_weight_only_products(tmp_path, bit_width):
    encoder = speech(quant.Policy(granularity="per_group_32"))
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width)
    proto = onnx.load(path)
    assert {opset.domain for opset in proto.opset_import} == {""}  # a standard file
    operators = export.integer_operators(path)
    assert operators["MatMulNBits"] == 6
    assert "DequantizeLinear" not in operators  # nothing is dequantized at every run
    with torch.no_grad():
        encoder.blocks[0].attn.out.weight[0, -1] *= 3
    difference = first_difference(proto, quant.quant_activations(encoder), quant.parse_bit_width(bit_width))
    assert difference == "blocks.0.attn.out"


def test_attention_multiplies_unsigned_by_signed_integers(tmp_path):
    encoder = speech(quant.Policy(attention=True))
    # Not verified: without VNNI the runtime has no exact sums of two activations of 8 bits.
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8", check=False)
    operators = export.integer_operators(path)
    assert operators["MatMulIntegerToFloat"] == 1 + 6 + 2
    assert not {"MatMul", "FusedMatMul", "QLinearMatMul"} & set(operators)
    proto = onnx.load(path)
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert [[stored[name] for name in node.input[2:]] for node in products] == [
        [TensorProto.UINT8, TensorProto.INT8]
    ] * 2
