import json
import shutil
import subprocess
import sys
import wave

import numpy as np
import onnxruntime
import pytest
import torch
from written import to_file

import export
import quant
from encoders import Head, SpeechTransformer, VisionEncoder, save_encoder
from export.card import card_text


@pytest.fixture(scope="module")
def head() -> Head:
    torch.manual_seed(1)
    return Head("classification", 32, ["yes", "no"], label="answer").eval()


@pytest.fixture(scope="module")
def whole(encoder, head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    paths = [
        to_file(encoder, folder / f"{b}.onnx", b, input="waveform", head=head, check=b == "w4a8")
        for b in ("fp", "w4a8")
    ]
    config = export.describe(paths, encoder, licence="MIT", trained_on="some clips")
    config["files"][1] |= {
        "latency_ms": {"1": 1.25, "10": 12.5},
        "accuracy": {"answer": 87.54},
        "accuracy_in_torch": {"r, R2": 0.5},
    }
    export.write_card(config, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def program_of(text: str) -> str:
    return text.split("```python\n")[1].split("```")[0]


def run(program: str, folder) -> str:
    """In a process that cannot import torch."""
    forbidden = "import sys\nsys.modules['torch'] = None\n"
    result = subprocess.run([sys.executable, "-c", forbidden + program], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_config_says_what_the_files_take_and_give(folder, encoder, head):
    config = json.loads((folder / "config.json").read_text())
    assert config["input"] == "waveform"
    assert config["inputs"]["waveform"]["shape"] == ["batch", "samples"]
    assert config["inputs"]["lengths"] == {"shape": ["batch"], "dtype": "int64", "unit": "samples"}
    assert config["outputs"]["features"]["shape"] == ["batch", "feature_frames", 32]
    assert config["outputs"]["logits"]["shape"] == ["batch", 2]
    assert (config["sample_rate_hz"], config["frame_rate_hz"], config["feature_dim"]) == (16_000, 50.0, 32)
    assert (config["head"], config["licence"], config["trained_on"]) == (head.arguments, "MIT", "some clips")
    first, second = config["files"]
    assert (first["file"], first["bit_width"], second["bit_width"]) == ("fp.onnx", "fp", "w4a8")
    assert first["size_bytes"] == (folder / "fp.onnx").stat().st_size
    assert (first["oldest_onnxruntime"], second["oldest_onnxruntime"]) == ("1.18", "1.23")
    assert first["error_over_variance"] is None
    assert second["error_over_variance"] < 1e-4


def test_layers_with_bits_of_their_own_are_said(tmp_path):
    torch.manual_seed(0)
    policy = quant.Policy(activation_range="per_token", layers={"blocks.0.mlp.*": "w2"})
    mixed = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2), policy).eval()
    clips = [mixed.front_end(0.1 * torch.randn(2, 16_000))]
    quant.calibrate(mixed, clips, lambda each: mixed(*each))
    layers = list(quant.quant_layers(mixed).items())
    bits = [8 if name == layers[0][0] else 2 if ".mlp." in name else 4 for name, _ in layers]
    sizes = [layer.weight.numel() for _, layer in layers]
    to_file(mixed, tmp_path / "mixed.onnx", "w4a8")
    entry = export.describe([tmp_path / "mixed.onnx"], mixed)["files"][0]
    assert entry["average_weight_bits"] == round(float(np.average(bits, weights=sizes)), 2)


def test_readme_has_the_same_numbers(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlicense: MIT\n")
    head = "| file | bit-width | MB | ONNX Runtime | error over variance | answer, % (this file) | r, R2 (torch) |"
    assert head in text
    assert "| 87.5 | 0.50 | 1.25 | 12.50 |" in text
    assert "| inputs | `waveform` | batch, samples | float32 | samples at 16000 Hz, from -1 to 1 |" in text
    assert "some clips" in text


def test_the_cards_program_runs_without_torch_and_answers_as_the_file_does(folder, head):
    samples = (np.random.default_rng(0).standard_normal(8_000) * 3_000).astype(np.int16)
    with wave.open(str(folder / "clip.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(samples.tobytes())
    program = program_of((folder / "README.md").read_text())
    session = onnxruntime.InferenceSession(str(folder / "w4a8.onnx"))
    feeds = {"waveform": (samples / 32768).astype(np.float32)[None], "lengths": np.array([8_000])}
    answer = head.classes[session.run(["logits"], feeds)[0].argmax()]
    assert run(program, folder).split("\n")[:2] == ["(1, 25, 32)", answer]


def test_programs_for_log_mels_images_and_other_heads_run_too(encoder, tmp_path):
    torch.manual_seed(0)
    vision = VisionEncoder("test_resnet", in_channels=1).eval()
    regression = Head("regression", 32, ["pitch"], units=["Hz"]).eval()
    cases = {
        "log_mel": (encoder, {"head": regression}, "(1, 50, 32)"),
        "image": (vision, {"image_size": 32}, f"(1, {vision.feature_dim})"),
    }
    for name, (model, options, shape) in cases.items():
        path = to_file(model, tmp_path / f"{name}.onnx", check=False, **options)
        config = export.describe([path], model)
        assert run(program_of(card_text(config)), tmp_path).startswith(shape)
        if name == "log_mel":
            assert config["outputs"]["values"]["unit"] == "Hz"


def test_limits_of_a_file_are_those_it_runs_with(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=1, heads=2, pooling=2, positions=50).eval()
    for form, shortest, longest in (("waveform", 480, 16_000), ("log_mel", 3, 100)):
        path = to_file(encoder, tmp_path / f"{form}.onnx", input=form, check=False)
        config = export.describe([path], encoder)
        assert config["limits"] == {"channels": 1, "shortest": shortest, "longest": longest}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), options)

        def frames(size, session=session, form=form):
            values = np.zeros((1, size) if form == "waveform" else (1, 80, size), np.float32)
            return session.run(["feature_lengths"], {form: values, "lengths": np.array([size])})[0][0]

        assert frames(shortest) == 1
        assert frames(longest) == 25
        with pytest.raises(Exception, match="Non-zero status code"):
            frames(longest + 2 * (160 if form == "waveform" else 1))
        export.write_card(config, tmp_path)
        text = (tmp_path / "README.md").read_text()
        unit = {"waveform": "samples", "log_mel": "frames"}[form]
        assert f"at least {shortest} {unit} (30 ms). No clip may be longer than {longest:,} {unit} (1 s)" in text
        assert "Mono audio at 16,000 Hz." in text


def test_an_export_joins_files_of_the_same_encoder_and_no_others(folder, encoder, head):
    kept = export.entries_to_keep(folder, encoder, "waveform", head, overwrite=False)
    assert [entry["file"] for entry in kept] == ["fp.onnx", "w4a8.onnx"]
    path = to_file(encoder, folder / "w8a8.onnx", "w8a8", input="waveform", head=head, check=False)
    export.write_card(export.describe([path], encoder), folder, kept)
    config = json.loads((folder / "config.json").read_text())
    assert [entry["file"] for entry in config["files"]] == ["fp.onnx", "w8a8.onnx", "w4a8.onnx"]
    assert config["files"][2]["latency_ms"] == {"1": 1.25, "10": 12.5}

    (folder / "fp.onnx").unlink()
    (folder / "w8a8.onnx").write_bytes((folder / "w4a8.onnx").read_bytes())
    kept = export.entries_to_keep(folder, encoder, "waveform", head, overwrite=False)
    assert [entry["file"] for entry in kept] == ["w4a8.onnx"]
    with pytest.raises(FileExistsError, match="another encoder, input or head"):
        export.entries_to_keep(folder, encoder, "log_mel", head, overwrite=False)
    with pytest.raises(FileExistsError, match="another encoder, input or head"):
        export.entries_to_keep(folder, SpeechTransformer(width=32, depth=1, heads=2), "waveform", head, overwrite=False)
    assert export.entries_to_keep(folder, encoder, "log_mel", head, overwrite=True) == []


def test_an_encoders_folder_and_another_readme_are_never_written_over(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder")
    with pytest.raises(FileExistsError, match="config.json holds the description of an encoder and would be replaced"):
        export.entries_to_keep(tmp_path / "encoder", encoder, None, None, overwrite=True)
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(FileExistsError, match="README.md was not written by ssql and would be replaced"):
        export.entries_to_keep(tmp_path, encoder, None, None, overwrite=True)
