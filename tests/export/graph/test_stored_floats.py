"""Positions in 12 bits and floats in 16, as a file stores them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from written import to_file

import export
import quant
from encoders import SpeechTransformer
from export.graph.stored_floats import HIGH, POSITIONS
from export.runtime.session import open_session


def test_float16_halves_the_file_and_keeps_the_features(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechTransformer(depth=1)
    full, half = (to_file(encoder, tmp_path / f"{half}.onnx", float16=half) for half in (False, True))
    assert half.stat().st_size < 0.52 * full.stat().st_size
    assert export.verify(half, encoder).error_over_variance < 1e-6
    assert export.integer_operators(half) == export.integer_operators(full)  # no Cast is left


@pytest.mark.parametrize("log_mel", ["whisper", "whisper_filled"])
def test_positions_of_a_quantized_file_take_12_bits_and_are_widened_at_its_start(tmp_path, log_mel):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=1, heads=2, positions=300, log_mel=log_mel).eval()
    with torch.no_grad():
        encoder.positional_embedding.weight.mul_(torch.rand(32) + 0.1)
        encoder.positional_embedding.weight[:, 3] = 0
    mels = encoder.front_end(0.1 * torch.randn(1, 95_680 + 320 * (log_mel == "whisper_filled")))
    quant.calibrate(quant.prepare(encoder, quant.Policy(activation_range="static")), [mels], lambda it: encoder(*it))
    full, small = (to_file(encoder, tmp_path / f"{bits}.onnx", bits) for bits in ("fp", "w8a8"))
    stored = {tensor.name: tensor for tensor in onnx.load(small).graph.initializer}
    kinds = {name: tensor.data_type for name, tensor in stored.items() if name.startswith(POSITIONS)}
    low, rest = f"{POSITIONS}.low", {f"{POSITIONS}.scale": TensorProto.FLOAT, f"{POSITIONS}.sixteen": TensorProto.FLOAT}
    assert kinds == {HIGH: TensorProto.INT8, low: TensorProto.INT4} | rest
    assert POSITIONS in {tensor.name for tensor in onnx.load(full).graph.initializer}
    assert export.integer_operators(small).get("Cast") == export.integer_operators(full).get("Cast")

    # What the runtime adds, against the table itself.
    proto = onnx.load(small)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(POSITIONS))
    onnx.save(proto, tmp_path / "probed.onnx")
    session = open_session(tmp_path / "probed.onnx")
    taken = {"log_mel": np.zeros((1, 80, 600), np.float32), "lengths": np.array([600 - 2 * (log_mel == "whisper")])}
    table = session.run([POSITIONS], taken)[0]
    exact = encoder.positional_embedding.weight.detach().numpy()
    assert (np.abs(table - exact) <= np.abs(exact).max(axis=0) / 2039 / 2 + 1e-7).all()
    assert export.verify(small, encoder).passed
