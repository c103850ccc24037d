"""What must not become a file, and what must survive when writing fails or is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from written import to_file

import export
import quant
from encoders import Head, SpeechTransformer, VisionEncoder, load_encoder, save_encoder
from export.runtime.session import open_session


class DataDependent(nn.Module):
    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(("layer", "reason"), [(DataDependent(), "data-dependent"), (Bessel(), "bessel_j0")])
def test_a_layer_that_onnx_cannot_express_is_named(layer, reason, tmp_path, capfd):
    encoder = SpeechTransformer(width=32, depth=1, heads=2).eval()
    encoder.blocks[0].mlp[1] = layer
    with pytest.raises(ValueError, match=rf"layer 'blocks\.0\.mlp\.1' has no ONNX form: .*{reason}"):
        to_file(encoder, tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []
    assert len(capfd.readouterr().err) < 2_000  # torch would print the whole graph


def test_an_opset_that_is_too_old_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="opset 17 is too old: quantized graphs need 21 or newer"):
        to_file(encoder, tmp_path / "encoder.onnx", "w8a8", opset=17)
    assert list(tmp_path.iterdir()) == []
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8", check=False)
    proto = onnx.load(path)
    proto.opset_import[0].version = 17
    onnx.save(proto, path)
    with pytest.raises(export.VerificationError, match=r"encoder\.onnx has opset 17, too old"):
        export.verify(path, encoder)


def test_a_newer_opset_is_written_and_verified(encoder, tmp_path):
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a8", opset=23)
    assert onnx.load(path).opset_import[0].version == 23


def test_an_input_that_the_encoder_does_not_have_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="unknown input 'wave': write one of log_mel, waveform"):
        to_file(encoder, tmp_path / "x.onnx", input="wave")
    with pytest.raises(ValueError, match="vision encoder has no input 'waveform': it takes images"):
        to_file(VisionEncoder("test_resnet"), tmp_path / "x.onnx", input="waveform")


def test_a_head_with_nan_is_refused(encoder, tmp_path):
    head = Head("classification", 32, ["yes", "no"]).eval()
    with torch.no_grad():
        head.linear.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"weight 'head\.linear\.bias' is NaN"):
        to_file(encoder, tmp_path / "x.onnx", head=head)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "bit_width"), [("log_mel", "fp"), ("waveform", "w8a8")])
def test_clips_of_no_length_have_no_features_and_no_nan_as_in_torch(encoder, form, bit_width, tmp_path):
    head = Head("classification", 32, ["yes", "no"]).eval()
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width, input=form, head=head, check=False)
    run = open_session(path)
    values = 0.1 * torch.randn(3, 8_000) if form == "waveform" else torch.randn(3, 80, 50)
    lengths = torch.tensor([values.shape[-1], 0, 0])
    features, feature_lengths, logits = run.run(None, {form: values.numpy(), "lengths": lengths.numpy()})
    values[1:] = 0
    with torch.no_grad(), quant.at(encoder, bit_width):
        given = encoder.front_end(values, lengths) if form == "waveform" else (values, lengths)
        expected, expected_lengths = encoder(*given)
        expected_logits = head(encoder.embed(*given))
    assert np.array_equal(feature_lengths, expected_lengths)
    assert feature_lengths.tolist() == [25, 0, 0]
    assert not features[1:].any()
    assert np.allclose(features, expected, atol=1e-2)
    assert np.allclose(logits, expected_logits, atol=1e-2)


# A program that exports over a good file while `before` is in force.
PROGRAM = """
import resource, sys
import export
from encoders import load_encoder
from export.runtime.session import open_session
encoder = load_encoder(sys.argv[1])
{before}
export.to_onnx(encoder, sys.argv[2], bit_width="w8a8", overwrite=True)
"""


@pytest.fixture
def standing(encoder, tmp_path):
    """A saved encoder, and a good file where the next export goes."""
    save_encoder(encoder, tmp_path / "saved")
    folder = tmp_path / "files"
    path = to_file(encoder, folder / "encoder.onnx", "w4a8")
    return tmp_path / "saved", path, path.read_bytes()


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(standing):
    saved, path, before = standing
    # Writing more than 20 kB to any file fails, in the middle of the new one.
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    program = [sys.executable, "-c", PROGRAM.format(before=limit), str(saved), str(path)]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 1
    said = result.stderr.splitlines()[-1]
    assert said == f"OSError: {path} was not written, and what was there is unchanged: File too large"
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["encoder.onnx", "encoder.verification.json"]


def test_a_killed_export_leaves_the_old_file_and_at_most_a_hidden_one(standing):
    saved, path, before = standing
    slow = "import export.write as module, time\nmodule.verify = lambda *_: time.sleep(600)"  # the new file is written
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(before=slow), str(saved), str(path)])
    try:
        while process.poll() is None and not any(name.endswith(".ssql-tmp") for name in os.listdir(path.parent)):
            time.sleep(0.01)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes() == before
    left = {".encoder.onnx.ssql-tmp", ".encoder.onnx.ssql-lock"}
    assert set(os.listdir(path.parent)) == {"encoder.onnx", "encoder.verification.json"} | left
    assert json.loads(path.with_suffix(".verification.json").read_text())["passed"]
    to_file(load_encoder(saved), path, overwrite=True)  # the next one removes them
    assert set(os.listdir(path.parent)) == {"encoder.onnx", "encoder.verification.json"}
    assert path.read_bytes() != before


def test_an_error_in_the_middle_leaves_nothing(encoder, tmp_path, monkeypatch):
    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("export.write.verify", fails)
    with pytest.raises(KeyboardInterrupt):
        to_file(encoder, tmp_path / "encoder.onnx", "w8a8")
    assert list(tmp_path.iterdir()) == []
