import copy
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from written import to_file, unmeasured

import export
import quant
from encoders import VisionEncoder, save_encoder
from export.check.stored import first_difference
from export.graph.qdq import to_qdq
from export.graph.signature import Signature
from export.graph.trace import trace
from export.runtime.session import open_session
from ssql.cli import main

W4A8 = quant.BitWidth(4, 8)


@pytest.fixture(scope="module")
def resnet() -> VisionEncoder:
    """Normalizations with statistics, signs and zeros of their own."""
    torch.manual_seed(0)
    encoder = VisionEncoder("test_resnet", in_channels=1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2)
    encoder.model.layer1[0].bn2.weight.data[0] = 0
    quant.calibrate(quant.prepare(encoder), [torch.randn(4, 1, 64, 64)])
    return encoder.eval()


@pytest.fixture(scope="module")
def file(resnet, tmp_path_factory):
    return to_file(resnet, tmp_path_factory.mktemp("onnx") / "resnet.onnx", "w4a8", image_size=64, check=False)


def test_normalizations_are_folded_and_all_products_are_of_integers(resnet, file):
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(file).graph.node}
    operators = export.integer_operators(file)
    assert operators["Conv"] == 1  # the first layer's, on the image in float
    assert operators["QLinearConv"] + operators["MatMulIntegerToFloat"] == len(quant.quant_layers(resnet)) - 1
    assert "DequantizeLinear" not in operators


def test_a_file_for_openvino_keeps_its_convolutions_and_torchs_numbers(resnet, tmp_path, monkeypatch):
    save_encoder(resnet, tmp_path / "encoder")
    words = ["ssql", "export", "--encoder", tmp_path / "encoder", "--output", tmp_path, "--bit_width", "w4a8"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--runtime", "openvino"])
    monkeypatch.setattr(export, "measure_files", unmeasured)
    main()  # verifies in ONNX Runtime
    path = tmp_path / "encoder-int4.onnx"
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("Conv"), kinds.count("MatMul"), kinds.count("BatchNormalization")) == (
        len(quant.quant_layers(resnet)), 0, 0,
    )  # fmt: skip
    pytest.importorskip("openvino")
    result = export.verify(path, resnet, runtime="openvino_f32")
    assert result.passed, result


def test_nothing_is_left_that_no_node_takes(file, capfd):
    graph = onnx.load(file).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


def test_integers_scales_and_features_stay_torchs(resnet, file):
    result = export.verify(file, resnet, "w4a8")
    assert result.passed, result
    changed = copy.deepcopy(resnet)
    name, layer = list(quant.quant_layers(changed).items())[2]
    with torch.no_grad():
        layer.weight.mul_(2)  # the same integers, another scale
    assert first_difference(onnx.load(file), quant.quant_activations(changed), W4A8) == name


def test_an_output_of_the_graph_keeps_its_name(tmp_path):
    torch.manual_seed(0)

    class Last(nn.Sequential):
        def forward(self, *inputs):
            return super().forward(*inputs)

    model = quant.prepare(Last(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).eval(), quant.Policy(first_layer="w8a8"))
    images = torch.randn(2, 2, 8, 8)
    quant.calibrate(model, [images])
    with torch.no_grad(), quant.at(model, "w8a8"):
        expected = model(images)
    to_qdq(model.requires_grad_(False), quant.BitWidth(8, 8))
    axes = ("batch", None, None, None)
    proto = trace(model, Signature({"x": axes}, {"y": axes}), (images,))
    assert [node.op_type for node in proto.graph.node if node.op_type in ("Conv", "BatchNormalization")] == []
    onnx.save(proto, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    assert np.allclose(session.run(["y"], {"x": images.numpy()})[0], expected, atol=1e-5)


def test_float_normalizations_are_left_to_the_runtime(resnet, tmp_path):
    path = to_file(resnet, tmp_path / "resnet.onnx", "fp", image_size=64)
    assert "BatchNormalization" not in export.integer_operators(path)
