import pytest
import torch

import export
from encoders import SpeechTransformer, VisionEncoder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=1, heads=2)
    return export.to_onnx(encoder, tmp_path_factory.mktemp("onnx") / "speech.onnx", check=False)


def test_files_are_measured_side_by_side(file):
    rows = export.measure_files([file, file], seconds=(0.5, 1.0), repeats=3, threads=1)
    assert [(row["seconds"], row["size_ratio"]) for row in rows] == [(0.5, 1), (0.5, 1), (1.0, 1), (1.0, 1)]
    assert all(row["latency_ms"] > 0 and row["cold_start_ms"] > 0 for row in rows)
    assert rows[0]["speedup"] == 1
    assert rows[0]["real_time_factor"] == rows[0]["latency_ms"] / 500


def test_what_cannot_be_measured_is_said(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export.measure_files(["nowhere.onnx"])
    with pytest.raises(ValueError, match="at least one file"):
        export.measure_files([])
    image = export.to_onnx(VisionEncoder("test_resnet"), tmp_path / "image.onnx", check=False, image_size=32)
    with pytest.raises(ValueError, match="same input, got images and log_mel"):
        export.measure_files([file, image])
    (row,) = export.measure_files([image], repeats=1)
    assert (row["seconds"], row["real_time_factor"]) == (0.0, None)
