"""Weights in groups beside quantized inputs, as `ssql export` writes them."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from written import unmeasured

import export
import quant
from encoders import SpeechTransformer, save_encoder
from export.graph.packing import weight_name
from ssql.cli import main

LINEAR = 6  # layers; of the two convolutions before them the second takes quantized inputs as well


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    policy = quant.Policy(granularity="per_group_32", layers={"*.attn.key": "w3", "*.attn.value": "w7"})
    encoder = quant.prepare(SpeechTransformer(width=64, depth=1, heads=2), policy)
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder.eval()


@pytest.fixture(scope="module")
def files(encoder, tmp_path_factory):
    """One at each bit-width, verified where they were written."""
    folder = tmp_path_factory.mktemp("groups")
    save_encoder(encoder, folder / "encoder")
    words = ["ssql", "export", "--encoder", folder / "encoder", "--output", folder, "--bit_width", "[w8a8, w4a8]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        patch.setattr(export, "measure_files", unmeasured)
        main()
    return {"w8a8": folder / "encoder-int8.onnx", "w4a8": folder / "encoder-int4.onnx"}


@pytest.mark.parametrize("bit_width", ["w8a8", "w4a8"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino_f32"])
def test_features_are_torchs_in_both_runtimes(encoder, files, bit_width, runtime):
    mel = torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(1))
    if runtime == "onnxruntime":  # as users start it, without the option for exact sums
        session = onnxruntime.InferenceSession(files[bit_width], providers=["CPUExecutionProvider"])
    else:
        pytest.importorskip("openvino")
        from export.runtime.start import start

        session = start(files[bit_width], runtime, 1)
    found = session.run(None, {"log_mel": mel.numpy(), "lengths": np.array([60])})[0]
    with torch.no_grad(), quant.at(encoder, bit_width):
        expected = encoder(mel)[0].numpy()
    assert np.square(found - expected).mean() < 1e-4 * expected.var()  # values at rounding edges fall either way


def test_int8_is_float_from_the_start_and_int4_stays_in_four_bits(files):
    float_weights = export.integer_operators(files["w8a8"])
    assert float_weights["DequantizeLinear"] == LINEAR + 1  # of the inputs: none of a weight at every run
    assert "MatMulIntegerToFloat" not in float_weights
    graph = onnx.load(files["w4a8"]).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for layer in ("query", "out"):
        name = weight_name(f"blocks.0.attn.{layer}")
        assert stored[name].data_type == TensorProto.INT4
        assert [node.op_type for node in graph.node if name in node.input] == ["DequantizeLinear"]
