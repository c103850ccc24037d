import numpy as np
import onnx
import pytest
import torch
from written import to_stream_file

import export
import quant
from encoders import StreamingTransformer
from export.check.stream import verify_stream
from export.runtime.session import open_session
from export.runtime.stream import FileStream


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "pooling": 2, "adaptor_dim": 24, "chunk": 8, "left_chunks": 2}
    encoder = quant.prepare(StreamingTransformer(**sizes)).eval()
    log_mel, _ = encoder.front_end(torch.randn(2, 32_000) * 0.1)
    quant.calibrate(encoder, [log_mel])
    return encoder


@pytest.fixture(scope="module", params=["fp", "w4a8"])
def file(encoder, request, tmp_path_factory):
    path = to_stream_file(encoder, tmp_path_factory.mktemp("stream") / "stream.onnx", request.param)
    return path, request.param


def test_every_step_of_the_file_gives_torchs_features_of_the_whole_clip(encoder, file):
    path, bit_width = file
    clip = torch.randn(40_000, generator=torch.Generator().manual_seed(1)) * 0.1
    result = verify_stream(path, encoder, bit_width, [clip])
    assert result.passed, result
    assert result.features.worst.error_over_variance < 1e-8 if bit_width == "fp" else result.layers == 17
    operators = export.integer_operators(path)
    assert operators.get("MatMulIntegerToFloat", 0) == (0 if bit_width == "fp" else 16)


def test_shapes_are_fixed_but_for_the_batch_and_the_state_keeps_its_names(file):
    path, _ = file
    graph = onnx.load(path).graph
    inputs = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    outputs = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    assert inputs["log_mel"] == ["batch", 80, 16]
    assert outputs["features"] == ["batch", 2, 24]
    for name in ("mel", "stem", "keys", "values", "past", "adaptor"):
        assert outputs[f"next_{name}"] == inputs[name]


@pytest.mark.parametrize("file", ["fp"], indirect=True)
def test_what_is_for_whole_clips_says_that_it_is_a_step(encoder, file):
    path, _ = file
    with pytest.raises(export.VerificationError, match="stream.onnx is one step of a stream"):
        export.verify(path, encoder)
    with pytest.raises(ValueError, match="stream.onnx is one step of a stream"):
        export.measure_files([path], seconds=[1.0], repeats=1)


@pytest.mark.parametrize("file", ["fp"], indirect=True)
def test_a_batch_of_streams_is_each_stream(encoder, file):
    path, _ = file
    session = open_session(path)
    log_mel = np.random.default_rng(0).standard_normal((3, 80, 64)).astype(np.float32)
    alone = [FileStream(session).push(clip) for clip in log_mel]
    state = [part.numpy() for part in encoder.start(3)]
    together = []
    for start in range(0, 64, 16):
        feeds = [log_mel[:, :, start : start + 16], np.full(3, 16), *state]
        features, _, *state = session.run(
            None, {spec.name: feed for spec, feed in zip(session.get_inputs(), feeds, strict=True)}
        )
        together.append(features)
    assert np.allclose(np.concatenate(together, axis=1), alone, atol=1e-4)


def test_a_file_that_departs_is_not_written(encoder, tmp_path, monkeypatch):
    step = FileStream._step
    monkeypatch.setattr(FileStream, "_step", lambda self, piece: 2 * step(self, piece))
    with pytest.raises(export.VerificationError, match=r"was not written, it does not agree with torch: \w+"):
        to_stream_file(encoder, tmp_path / "stream.onnx", "w8a8")
    assert list(tmp_path.iterdir()) == []
