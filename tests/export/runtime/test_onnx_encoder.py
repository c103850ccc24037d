import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio
from written import to_file

from encoders import Head
from export import FileEncoder, OnnxEncoder

SECOND = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)


@pytest.fixture(scope="module")
def file(encoder, tmp_path_factory):
    torch.manual_seed(1)
    head = Head("classification", 32, ["yes", "no"], label="answer").eval()
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    return to_file(encoder, path, "w8a8", input="waveform", head=head, check=False)


def test_samples_become_the_features_of_the_file(file):
    in_onnx = OnnxEncoder(file)
    assert (in_onnx.bit_width, in_onnx.frame_rate, in_onnx.feature_dim) == ("w8a8", 50, 32)
    assert in_onnx.head["classes"] == ["yes", "no"]
    expected, _ = FileEncoder(file)(torch.from_numpy(SECOND)[None])
    outputs = in_onnx.outputs(SECOND, 16_000)
    assert outputs["logits"].shape == (2,)
    for features in (outputs["features"], in_onnx(SECOND.astype(np.float64), 16_000)):
        assert features.dtype == np.float32
        assert np.array_equal(features, expected[0].numpy())
    steps = (SECOND * 32768).round().astype(np.int16)
    assert np.array_equal(in_onnx(steps, 16_000), in_onnx(steps / 32768, 16_000))


def test_another_rate_is_resampled(file):
    in_onnx = OnnxEncoder(file)
    times = np.arange(44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * times)
    expected = torchaudio.functional.resample(torch.from_numpy(tone), 44_100, 16_000).numpy()
    found = in_onnx(tone, 44_100)
    other = in_onnx(expected, 16_000)
    assert found.shape == other.shape == (50, 32)
    error = ((found - other) ** 2).mean() / other.var(axis=0).mean()
    assert error < 0.05  # another low-pass filter; the ends of the clip differ most


def test_what_it_does_not_take_is_said(file, encoder, tmp_path):
    in_onnx = OnnxEncoder(file)
    with pytest.raises(ValueError, match="samples are empty"):
        in_onnx(np.zeros(0, np.float32), 16_000)
    with pytest.raises(ValueError, match=r"talk\.wav is a path: read the file first"):
        in_onnx("talk.wav", 16_000)
    with pytest.raises(ValueError, match=r"mono, of shape \(samples,\), got \(2, 100\)"):
        in_onnx(np.zeros((2, 100)), 16_000)
    with pytest.raises(ValueError, match="samples are NaN or infinite"):
        in_onnx(np.array([0.0, np.nan]), 16_000)
    with pytest.raises(ValueError, match="from -1 to 1, got 20000: divide those of 16-bit integers by 32768"):
        in_onnx(20_000 * np.sin(np.arange(-np.pi / 2, 100)), 16_000)
    with pytest.raises(ValueError, match="positive number of Hz, got 0"):
        in_onnx(SECOND, 0)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx does not exist"):
        OnnxEncoder(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match=r"text\.onnx does not start in ONNX Runtime"):
        OnnxEncoder(tmp_path / "text.onnx")
    of_mels = to_file(encoder, tmp_path / "mels.onnx", check=False)
    with pytest.raises(ValueError, match=r"mels\.onnx takes log_mel, not samples: .*--input waveform"):
        OnnxEncoder(of_mels)


@pytest.mark.parametrize(("runtime", "hidden"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_it_needs_its_runtime_and_no_torch(file, runtime, hidden):
    program = f"""
import sys
for module in ("torch", "onnx", {hidden!r}):
    sys.modules[module] = None
import export, numpy
encoder = export.OnnxEncoder({str(file)!r}, runtime={runtime!r})
print(encoder(numpy.zeros(16_000), 16_000).shape, encoder.bit_width, encoder.head["classes"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(50, 32) w8a8 ['yes', 'no']\n"), done.stderr
