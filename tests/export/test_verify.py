import copy

import pytest
import torch

import export
import quant
from encoders import SpeechTransformer


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2))
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder.eval()


@pytest.fixture(scope="module")
def file(encoder, tmp_path_factory):
    return export.to_onnx(encoder, tmp_path_factory.mktemp("onnx") / "encoder.onnx", "w4a8")


def test_a_good_file_passes_on_clips_alone_and_padded(encoder, file):
    result = export.verify(file, encoder, "w4a8")
    assert result.passed
    assert (result.layers, result.clips) == (8, 8)
    assert result.to_dict()["passed"] is True


def test_a_changed_weight_fails_and_names_its_layer(encoder, file):
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.blocks[0].mlp[0].weight.mul_(-1)
    result = export.verify(file, other, "w4a8")
    assert not result.passed
    assert result.first_difference == "blocks.0.mlp.0"


def test_changed_ranges_fail(encoder, file):
    other = copy.deepcopy(encoder)
    other.blocks[0].attn.out.activation_max.mul_(1.5)
    assert export.verify(file, other, "w4a8").first_difference == "blocks.0.attn.out"


def test_another_bit_width_or_file_is_an_error(encoder, file, tmp_path):
    with pytest.raises(export.VerificationError, match="at w4a8, not speech_transformer at w8a8"):
        export.verify(file, encoder, "w8a8")
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(export.VerificationError, match=r"x\.onnx is not an ONNX file|holds encoder None"):
        export.verify(tmp_path / "x.onnx", encoder, "w4a8")


def test_bench_measures_files_side_by_side(file):
    rows = export.measure_files([file, file], seconds=(0.5, 1.0), repeats=3)
    assert [(row["seconds"], row["size_ratio"]) for row in rows] == [(0.5, 1), (0.5, 1), (1.0, 1), (1.0, 1)]
    assert all(row["latency_ms"] > 0 for row in rows)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export.measure_files(["nowhere.onnx"])
