"""The option --runtime of commands that run exported files, as it is typed."""

import json

import numpy as np
import pytest
import soundfile
from safetensors import safe_open
from written import to_file

from encoders import load_encoder
from export.runtime.openvino_session import OpenVinoSession
from export.runtime.start import start
from ssql.terminal import groups

PRECISION = "bf16", "f16", "f32"  # by processor


@pytest.fixture(scope="module")
def files(saved, tmp_path_factory):
    folder, encoder = tmp_path_factory.mktemp("files"), load_encoder(saved)
    forms = {"fp": "encoder-fp32.onnx", "w8a8": "encoder-int8.onnx"}
    return [to_file(encoder, folder / name, b, input="waveform", check=False) for b, name in forms.items()]


def test_bench_measures_files_and_runtimes_in_turns(files, ssql, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("export.runtime.bench.COLD_STARTS", 1)
    words = ["--runtimes", "[onnxruntime, openvino, openvino_f32]", "--seconds", "[0.5]", "--threads", "[1]"]
    ssql("bench", *files, *words, "--repeats", "2", "--output", tmp_path / "latency")
    rows = json.loads((tmp_path / "latency.json").read_text())
    runtimes = ("onnxruntime", "openvino", "openvino_f32")
    assert [(row["runtime"], row["file"]) for row in rows] == [(r, file.name) for r in runtimes for file in files]
    assert [row["precision"] for row in rows if row["runtime"] != "openvino"] == 4 * ["f32"]
    assert {row["precision"] for row in rows} <= set(PRECISION)
    assert all(row["speedup"] == rows[0]["fastest_ms"] / row["fastest_ms"] for row in rows)
    assert all(row["cold_start_ms"] > 0 and row["peak_memory_bytes"] > 0 for row in rows)
    assert [row["size_ratio"] for row in rows[:2]] == [row["size_ratio"] for row in rows[4:]]
    printed = capsys.readouterr().out
    assert printed.count("openvino_f32") == 2 * len(files)  # a line of the files, one of the latencies
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_verify_compares_what_the_runtime_computes(files, saved, ssql, monkeypatch, capsys):
    words = ["verify", "--file", files[1], "--encoder", saved, "--runtime"]
    report = files[1].with_suffix(".verification.json")
    ssql(*words, "openvino_f32")
    first, *details = capsys.readouterr().out.splitlines()
    assert first.endswith(", and in openvino_f32 at f32")
    found = json.loads(report.read_text())["in_runtime"]
    assert (found["runtime"], found["precision"], found["lengths_equal"]) == ("openvino_f32", "f32", True)
    assert found["features"]["error_over_variance"] < 1e-4
    [line] = [line for line in details if "in openvino_f32 at f32: " in line]
    assert f"error over variance {found['features']['error_over_variance']:.2g} (at most 0.02), worst frame" in line

    run = OpenVinoSession.run

    def wrong(self, names, feeds):
        features, *others = run(self, names, feeds)
        return [1.5 * features, *others]

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    with pytest.raises(SystemExit, match=r"does not agree with torch: in openvino at \w+: error over variance 0\.\d+"):
        ssql(*words, "openvino")
    assert json.loads(report.read_text())["passed"] is False
    ssql(*words, "onnxruntime")  # of itself the file is right
    assert json.loads(report.read_text())["in_runtime"] is None


@pytest.mark.parametrize("part", ["lengths", "padding"])
def test_verify_finds_wrong_lengths_and_padding(files, saved, ssql, monkeypatch, part):
    run = OpenVinoSession.run

    def wrong(self, names, feeds):
        features, lengths = run(self, names, feeds)
        if part == "lengths":
            return [features, lengths - 1]
        features[np.arange(features.shape[1])[None] >= lengths[:, None]] = 1
        return [features, lengths]

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    said = "another shape than torch's" if part == "lengths" else "beyond a clip's length are not zero"
    with pytest.raises(SystemExit, match=f"in openvino_f32 at f32: features .*{said}"):
        ssql("verify", "--file", files[1], "--encoder", saved, "--runtime", "openvino_f32")


def test_features_say_the_runtime_that_computed_them(files, ssql, tmp_path):
    clip = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    soundfile.write(tmp_path / "talk.wav", clip, 16_000, subtype="FLOAT")
    found = {}
    for runtime in ("onnxruntime", "openvino"):
        output = tmp_path / f"{runtime}.safetensors"
        ssql("features", tmp_path / "talk.wav", "--encoder", files[1], "--output", output, "--runtime", runtime)
        with safe_open(output, "numpy") as file:
            found[runtime] = file.get_tensor("features")
            assert file.metadata()["runtime"] == runtime
            assert file.metadata()["precision"] == start(files[1], runtime).precision
    error = ((found["openvino"] - found["onnxruntime"]) ** 2).mean() / found["onnxruntime"].var(axis=0).mean()
    assert error < 2e-3


@pytest.mark.usefixtures("speak_once")
def test_evaluate_measures_files_in_the_runtime_and_folders_in_torch(files, saved, ssql, tmp_path):
    words = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "60", "--data.test_size", "40"]
    encoders = {"torch": str(saved), "int8": str(files[1])}
    words += ["--tasks", "[word]", "--encoders", json.dumps(encoders), "--bit_widths", "[w8a8]"]
    ssql("evaluate", *words, "--output", tmp_path, "--runtime", "openvino")
    rows = json.loads((tmp_path / "accuracy.json").read_text())
    [(runtime, precision)] = {(row["runtime"], row["precision"]) for row in rows if "file_sha256" in row}
    assert runtime == "openvino"
    assert {row["method"] for row in rows} == {"torch", f"int8, openvino at {precision}"}
    assert not any("runtime" in row for row in rows if row["method"] == "torch")
    assert f"int8, openvino at {precision}" in (tmp_path / "accuracy.md").read_text()


def test_what_cannot_be_done_is_said_before_any_work(files, saved, ssql, tmp_path, monkeypatch):
    for command in ("features", "evaluate", "suite"):
        words = {"features": ["a.wav", "--encoder", saved], "suite": ["--encoders.a", saved]}.get(command)
        words = words or ["--encoders.a", saved, "--data", "SpokenWords"]
        with pytest.raises(SystemExit, match=r"--runtime openvino is for files that ssql export wrote \(\.onnx\)"):
            ssql(command, *words, "--output", tmp_path / "x", "--runtime", "openvino")
    monkeypatch.setattr(groups.importlib.util, "find_spec", lambda name: None)
    sentence = r"openvino is not installed, which belongs to the group openvino: pip install 'ssql-toolkit\[openvino\]'"
    for words in (
        ["bench", files[0], "--runtimes", "[onnxruntime, openvino_f32]"],
        ["verify", "--file", files[0], "--encoder", saved, "--runtime", "openvino"],
        ["features", "a.wav", "--encoder", files[0], "--output", tmp_path / "x", "--runtime", "openvino"],
    ):
        with pytest.raises(SystemExit, match=sentence):
            ssql(*words)
    assert not list(tmp_path.iterdir())


def test_a_runtime_is_one_of_three_words(files, ssql, capsys):
    with pytest.raises(SystemExit):
        ssql("bench", files[0], "--runtimes", "[tensorrt]")
    said = capsys.readouterr().err
    assert "tensorrt" in said
    assert "openvino_f32" in said
