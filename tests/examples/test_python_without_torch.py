import json
import re
import runpy
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from written import to_file

from encoders import Head, SpeechTransformer

SCRIPT = Path(__file__).parents[2] / "examples" / "python_without_torch.py"
CLASSES = ["yes", "no", "maybe", "later"]
# Runs the script as a person would, with every package but the three it names out of reach.
ALONE = f"""
import runpy, sys
for name in ("torch", "torchaudio", "encoders", "export", "quant", "ssql", "onnx"):
    sys.modules[name] = None
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    head = Head("classification", 32, CLASSES)
    encoder = SpeechTransformer(width=32, depth=1, heads=2).eval()
    path = tmp_path_factory.mktemp("files") / "encoder-fp32.onnx"
    to_file(encoder, path, input="waveform", head=head, check=False)
    path.with_name("config.json").write_text(json.dumps({"frame_rate_hz": 50.0, "head": head.arguments}))
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes((samples * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}").tobytes())
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ALONE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_features_and_answer_without_torch(model, tmp_path):
    samples = np.sin(np.arange(12_800) ** 1.3 / 50)
    result = run(model, write_wav(tmp_path / "clip.wav", samples, 16_000))
    assert result.returncode == 0, result.stderr
    features, latency, answer = result.stdout.splitlines()
    assert features == "features: 40 frames of 32 dimensions, 50.0 frames a second"
    assert re.fullmatch(r"latency: \d+\.\d ms for 0\.80 s, real-time factor \d\.\d{4}", latency)
    waveform = (samples * 32767).astype(np.int16).astype(np.float32)[np.newaxis] / 32768
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"waveform": waveform, "lengths": np.array([12_800])})
    likely = torch.from_numpy(logits[0]).softmax(0)
    best = ", ".join(f"{CLASSES[index]} {100 * likely[index]:.1f} %" for index in likely.topk(3).indices)
    assert answer == f"answer: {best}"


def test_other_rates_are_resampled(tmp_path):
    read_wav = runpy.run_path(str(SCRIPT))["read_wav"]
    for rate in (8_000, 44_100):
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        found = read_wav(str(write_wav(tmp_path / "tone.wav", tone, rate)))
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1e-3)


def test_ctc_merges_repeats_and_regression_has_units():
    answer = runpy.run_path(str(SCRIPT))["answer"]
    logits = np.eye(4)[[0, 1, 1, 0, 1, 2, 3, 3, 0]]
    assert answer({"task": "ctc", "classes": ["a", "b", "c"]}, logits) == "aabc"
    regression = {"task": "regression", "classes": ["pitch", "level"], "units": ["Hz", "dB"]}
    assert answer(regression, np.array([220.04, -12.5])) == "pitch 220 Hz, level -12.5 dB"


def test_bad_calls_are_explained(model, tmp_path):
    assert "pip install onnxruntime numpy" in run().stderr
    clip = write_wav(tmp_path / "wide.wav", np.zeros(1_600), 16_000, width=4)
    assert "wide.wav has 32 bits a sample; this example reads 16" in run(model, clip).stderr


def test_a_wav_that_was_cut_off_is_refused(model, tmp_path):
    clip = write_wav(tmp_path / "clip.wav", np.sin(np.arange(12_800) / 5), 16_000)
    clip.write_bytes(clip.read_bytes()[:9_001])
    result = run(model, clip)
    assert result.returncode == 1
    assert result.stderr.strip() == f"{clip} was cut off: its header promises more samples than there are"


def test_another_file_than_a_wav_is_a_sentence(model, tmp_path):
    (tmp_path / "clip.ogg").write_bytes(b"OggS and more")
    result = run(model, tmp_path / "clip.ogg")
    assert result.returncode == 1
    assert "clip.ogg is no wav that this example reads" in result.stderr and "Traceback" not in result.stderr
