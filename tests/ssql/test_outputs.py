"""No command replaces or deletes what it did not write, or anything before the new is ready: as it is typed."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from written import to_file, unmeasured

import export.write
import export.write_stream
import quant
import ssql.commands.suite
from encoders import Head, StreamingTransformer, Tokenizer, load_encoder, load_head, save_encoder
from encoders.storage.files import sole_writer
from ssql import cli

ROW = {"method": "a", "task": "word", "bit_width": "fp", "metric": "linear", "value": 90.0}
DATA = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "8", "--data.test_size", "4"]


def listing(folder):
    """Every name below a folder, where links lead, and the content of every file."""
    return {
        str(path.relative_to(folder)): (
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def ssql_ends(monkeypatch, capsys):
    """Run a command, and give back what it said when it refused; None when it ran to its end."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as error:
            return f"{error.code} {' '.join(capsys.readouterr().err.split())}" if error.code else None
        return None

    return run


@pytest.fixture(scope="module")
def graphs():
    """Of each module that exports, the one graph that the commands here write, as bytes."""
    return {}


@pytest.fixture
def quick(monkeypatch, graphs):
    """Tracing once is enough, and measuring is not what is tested here."""

    def build_once(module):
        build = module._build

        def built(*arguments):
            if module not in graphs:
                graphs[module] = build(*arguments).SerializeToString()
            return onnx.load_from_string(graphs[module])

        return built

    monkeypatch.setattr(export, "measure_files", unmeasured)
    for module in (export.write, export.write_stream):
        monkeypatch.setattr(module, "_build", build_once(module))


@pytest.fixture(scope="module")
def inputs(saved, tmp_path_factory):
    """What the commands read: encoders, audio, rows, a run, and an exported file."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(saved, folder / "plain")
    torch.manual_seed(0)
    encoder = load_encoder(saved)
    head, tokenizer = Head("classification", 32, ["yes", "no"]), Tokenizer(32, encoder.frame_rate, 8, 8)
    save_encoder(encoder, folder / "encoder", head=head, tokenizer=tokenizer)
    streaming = quant.prepare(StreamingTransformer(width=16, depth=1, heads=2, chunk=8, left_chunks=1)).eval()
    quant.calibrate(streaming, [streaming.front_end(0.1 * torch.randn(2, 16_000))[0]])
    save_encoder(streaming, folder / "streaming")
    soundfile.write(folder / "talk.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    (folder / "encoder.onnx").touch()
    (folder / "run").mkdir()
    (folder / "run" / "accuracy.json").write_text(json.dumps([ROW]))
    return folder


@pytest.fixture(scope="module")
def exported_file(inputs, graphs, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "encoder.onnx"
    to_file(load_encoder(inputs / "plain"), path, "fp", check=False)
    graphs[export.write] = path.read_bytes()
    return path


def commands(inputs, output):
    """Each command that writes files: its words, and the files it writes."""
    encoder, results = inputs / "encoder", ("json", "csv", "md", "png")
    out = ["--output", output]
    return {
        "evaluate": (["--encoders.a", encoder, *DATA, *out], [f"accuracy.{ending}" for ending in results]),
        "evaluate_tokenizer": (["--tokenizers.a", encoder, *DATA, *out], [f"tokens.{ending}" for ending in results]),
        "suite": (
            ["--encoders", "{}", "--parts", "[]", "--rows", f"[{inputs}/run/accuracy.json]", *out],
            [*(f"suite.{ending}" for ending in results), "suite.partial.json"],
        ),
        "compare": (
            ["--rows", f"[{inputs}/run/accuracy.json]", *out],
            [f"accuracy.{ending}" for ending in results],
        ),
        "report": (["--runs", f"[{inputs}/run]", "--output", output / "page.html"], ["page.html"]),
        "export": (
            ["--encoder", inputs / "plain", "--bit_width", "fp", *out],
            ["encoder-fp32.onnx", "encoder-fp32.verification.json", "latency.json", "README.md", "config.json"],
        ),
        "stream": (["--encoder", inputs / "streaming", "--bit_width", "fp", *out], ["stream-fp32.onnx"]),
        "features": ([inputs / "talk.wav", "--encoder", encoder, *out], ["talk.safetensors"]),
        "bench": ([inputs / "encoder.onnx", "--output", output / "notes"], ["notes.json", "notes.png"]),
    }


NAMES = list(commands(Path(), Path()))


@pytest.mark.parametrize("command", NAMES)
def test_a_file_of_that_name_that_ssql_did_not_write_stays(command, inputs, ssql_ends, tmp_path):
    output = tmp_path / "out"
    words, targets = commands(inputs, output)[command]
    for target in targets:
        for kind in ("mine", "link", "folder"):
            output.mkdir()
            (output / "notes.txt").write_text("mine")
            path = output / target
            if kind == "mine":
                path.write_text('[{"mine": 1}]\n')
            elif kind == "link":
                path.symlink_to(output / "notes.txt")
            else:
                path.mkdir()
            before = listing(tmp_path)
            said = ssql_ends(command, *words, "--overwrite", "true")
            wrong = {
                "mine": "was not written by ssql",
                "link": "is a symbolic link",
                "folder": "is a folder",
            }[kind]
            assert said is not None and f"{path} " in said and wrong in said
            assert listing(tmp_path) == before
            shutil.rmtree(output)


@pytest.mark.parametrize("command", NAMES)
def test_a_folder_that_is_a_file_and_another_writer_are_said(command, inputs, ssql_ends, tmp_path):
    (tmp_path / "file").write_text("mine")
    words, targets = commands(inputs, tmp_path / "file")[command]
    before = listing(tmp_path)
    said = ssql_ends(command, *words, "--overwrite", "true")
    assert said is not None and f"cannot be written: {tmp_path}/file is not a folder" in said
    assert listing(tmp_path) == before
    names = {"evaluate": "accuracy", "compare": "accuracy", "evaluate_tokenizer": "tokens", "bench": "notes"}
    lock = names.get(command, targets[0] if command in ("report", "features") else command)
    words, _ = commands(inputs, tmp_path / "out")[command]
    with sole_writer(tmp_path / "out" / lock):
        said = ssql_ends(command, *words)
        assert said is not None and f"another process is writing {tmp_path}/out/{lock}" in said
    assert not (tmp_path / "out").exists()


def test_each_command_replaces_its_own_when_asked_and_only_then(inputs, exported_file, ssql_ends, quick, tmp_path):
    made = {}
    for command in ("compare", "suite", "report", "export", "stream", "features", "bench"):
        output = tmp_path / command
        words, targets = commands(inputs, output)[command]
        said = ssql_ends(command, *words)
        assert said is None, said
        made[command] = set(listing(output))
        assert set(targets) - {"suite.partial.json"} == made[command]
        before = listing(tmp_path)
        said = ssql_ends(command, *words)
        assert said is not None and "exists already" in said
        assert listing(tmp_path) == before
        (output / "notes.txt").write_text("mine")
        (output / f".{targets[0]}.ssql-tmp").write_text("left by a run that was killed")
        said = ssql_ends(command, *words, "--overwrite", "true")
        assert said is None, said
        assert set(listing(output)) == made[command] | {"notes.txt"}
        assert (output / "notes.txt").read_text() == "mine"


def test_bad_input_with_overwrite_loses_nothing(inputs, ssql_ends, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    for ending in ("json", "csv", "md", "png"):
        for name in ("accuracy", "tokens", "suite"):
            (output / f"{name}.{ending}").touch()
    for name in ("page.html", "encoder-fp32.onnx", "stream-fp32.onnx", "talk.safetensors", "notes.json"):
        (output / name).touch()  # may be replaced: there is nothing to lose
    save_encoder(load_encoder(inputs / "encoder"), tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x77")
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "talk.wav").write_text("no audio")
    out = ["--output", output, "--overwrite", "true"]
    before = listing(tmp_path)
    for words, message in {
        ("evaluate", "--encoders.a", tmp_path / "damaged", *DATA, *out): "model.safetensors is damaged",
        ("evaluate_tokenizer", "--tokenizers.a", tmp_path / "damaged", *DATA, *out): "no tokenizer in",
        ("suite", "--encoders.a", tmp_path / "damaged", "--parts", "[words]", *out): "model.safetensors is damaged",
        ("compare", "--rows", f"[{tmp_path}/rows.json]", *out): "does not hold rows",
        ("compare", "--rows", "[]", *out): "--rows is empty",
        ("report", "--runs", f"[{tmp_path}/damaged]", *out[:1], output / "page.html", *out[2:]): "nothing to report",
        ("report", "--runs", f"[{inputs}/run]", *out): "should end in .html",
        ("export", "--encoder", tmp_path / "damaged", *out): "model.safetensors is damaged",
        ("stream", "--encoder", inputs / "encoder", *out): "only a StreamingTransformer runs step by step",
        ("features", tmp_path / "talk.wav", "--encoder", inputs / "encoder", *out): "talk.wav",
        ("bench", tmp_path / "none.onnx", *out[:1], output / "notes", *out[2:]): "none.onnx does not exist",
        ("bench", inputs / "encoder.onnx", "--output", "."): "--output . names a folder: name the files in it, as ./la",
    }.items():
        said = ssql_ends(*words)
        assert said is not None and message in said, words
        assert listing(tmp_path) == before


def encoder_commands(inputs, source, output):
    return {
        "quantize": ["--encoder", source, *DATA, "--examples", "8", "--output", output, "--overwrite", "true"],
        "import": ["--weights", inputs / "plain", "--layout", "whisper", "--output", output, "--overwrite", "true"],
    }


@pytest.mark.parametrize("command", ["quantize", "import"])
def test_a_folder_with_anything_else_is_refused_by_name(command, inputs, ssql_ends, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(inputs / "encoder", run / "encoder")
    shutil.copytree(inputs / "encoder", run / "kept")
    (run / "kept" / "notes.txt").write_text("mine")
    (run / "notes.txt").write_text("mine")
    (run / "link").symlink_to(run / "encoder")
    (run / "published").mkdir()
    (run / "published" / "config.json").write_text('{"model_type": "whisper"}')
    before = listing(tmp_path)
    for output, message in {
        run: "run holds what is not of an encoder (encoder, kept, link and 2 more)",
        run / "kept": "kept holds what is not of an encoder (notes.txt)",
        run / "notes.txt": "notes.txt is a file",
        run / "notes.txt" / "encoder": "notes.txt is not a folder",
        run / "link": "link is a symbolic link",
        run / "published": "has no config.json of an encoder",
        "/": "choose a folder in it",
    }.items():
        said = ssql_ends(command, *encoder_commands(inputs, run / "encoder", output)[command])
        assert said is not None and message in said
        assert listing(tmp_path) == before
    said = ssql_ends(command, *encoder_commands(inputs, run / "encoder", run / "encoder")[command][:-2])
    assert said is not None and "encoder exists already: choose another folder, or overwrite" in said


def test_an_encoder_is_quantized_in_its_place_and_stays_where_that_fails(inputs, ssql_ends, speak_once, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(inputs / "encoder", folder)
    before = listing(tmp_path)
    words = encoder_commands(inputs, folder, folder)
    for bad in (
        [*words["quantize"], "--observer", "mean"],
        [*words["quantize"], "--policy.layers", '{"nothing": "w8"}'],
        ["--encoder", tmp_path / "none", *words["quantize"][2:]],
    ):
        assert ssql_ends("quantize", *bad) is not None
        assert listing(tmp_path) == before
    said = ssql_ends("import", *words["import"])
    assert said is not None and "has no encoder in layout 'whisper'" in said
    assert listing(tmp_path) == before
    with sole_writer(folder):
        said = ssql_ends("quantize", *words["quantize"])
        assert said is not None and f"another process is writing {folder}" in said
    assert listing(tmp_path) == before
    assert ssql_ends("quantize", *words["quantize"]) is None
    assert set(listing(tmp_path)) == set(before)
    old, new = (load_file(path / "model.safetensors") for path in (inputs / "encoder", folder))
    assert any(not torch.equal(old[key], new[key]) for key in old if "activation" in key)
    assert all(torch.equal(old[key], new[key]) for key in old if "activation" not in key)
    assert load_head(folder).classes == ["yes", "no"]


def test_verify_and_features_and_bench_leave_what_is_not_theirs(inputs, exported_file, ssql_ends, quick, tmp_path):
    file = tmp_path / "encoder.onnx"
    shutil.copy(exported_file, file)
    shutil.copytree(inputs / "plain", tmp_path / "encoder")
    report = tmp_path / "encoder.verification.json"
    report.write_text('{"verified": "by me"}')
    shutil.copy(inputs / "run" / "accuracy.json", tmp_path / "accuracy.json")
    weights = tmp_path / "encoder" / "model.safetensors"
    before = listing(tmp_path)
    audio, encoder = inputs / "talk.wav", ("--encoder", tmp_path / "encoder")
    for words, message in {
        (
            "verify",
            "--file",
            file,
            *encoder,
        ): f"{report} was not written by ssql",
        (
            "features",
            audio,
            *encoder,
            "--output",
            weights,
        ): f"{weights} was not written by ssql",
        (
            "bench",
            file,
            "--output",
            tmp_path / "accuracy",
        ): "accuracy.json holds results of an evaluation",
        (
            "export",
            *encoder,
            "--output",
            tmp_path / "encoder",
        ): "config.json holds the description of an encoder",
    }.items():
        said = ssql_ends(*words, *(["--overwrite", "true"] if words[0] != "verify" else []))
        assert said is not None and message in said
        assert listing(tmp_path) == before
    report.unlink()
    assert ssql_ends("verify", "--file", file, *encoder) is None
    assert ssql_ends("verify", "--file", file, *encoder) is None  # its own report is replaced
    assert json.loads(report.read_text())["passed"]


def test_a_suite_that_is_stopped_keeps_the_last_one_and_what_it_has_measured(inputs, ssql_ends, monkeypatch, tmp_path):
    parts = {name: SimpleNamespace(setup=lambda: None) for name in ("words", "prosody")}
    measured = []

    def evaluate(loaded, data, *_):
        measured.append(data)
        if len(measured) == 2:
            raise ValueError("stopped")
        return [ROW]

    monkeypatch.setattr(ssql.commands.suite, "speech_suite", lambda *_: (parts, []))
    monkeypatch.setattr(ssql.commands.suite, "evaluate_encoders", evaluate)
    words = ["--encoders.a", inputs / "encoder", "--output", tmp_path]
    rows = f"[{inputs}/run/accuracy.json]"
    assert ssql_ends("compare", "--rows", rows, "--output", tmp_path) is None
    twice = f"[{rows[1:-1]}, {rows[1:-1]}]"
    assert "is the same measurement as" in ssql_ends("compare", "--rows", twice, "--output", tmp_path / "twice")
    again = ("suite", *words[:2], "--parts", "[]", "--rows", twice, "--output", tmp_path / "twice")
    assert "is the same measurement as" in ssql_ends(*again)
    for name in ("json", "csv", "md", "png"):
        (tmp_path / f"accuracy.{name}").rename(tmp_path / f"suite.{name}")
    before = listing(tmp_path)
    said = ssql_ends("suite", *words, "--overwrite", "true")
    assert said is not None and "stopped" in said
    partial = tmp_path / "suite.partial.json"
    assert json.loads(partial.read_text()) == [ROW | {"task": "words/word"}]
    assert listing(tmp_path) == before | {"suite.partial.json": partial.read_bytes()}
    for ending in ("json", "csv", "md", "png"):
        (tmp_path / f"suite.{ending}").unlink()
    said = ssql_ends("suite", *words)
    assert said is not None and "suite.partial.json exists already" in said
    assert ssql_ends("suite", *words, "--rows", f"[{partial}]") is None
    assert set(listing(tmp_path)) == {"suite.json", "suite.csv", "suite.md", "suite.png"}


def test_a_later_export_keeps_the_latencies_of_other_files(
    inputs, exported_file, ssql_ends, quick, monkeypatch, tmp_path
):
    monkeypatch.setattr(export, "to_onnx", lambda _, path, *a, **b: shutil.copy(exported_file, path))
    words = ["export", "--encoder", inputs / "plain", "--output", tmp_path, "--bit_width"]
    assert ssql_ends(*words, "fp") is None
    assert ssql_ends(*words, "w4a8") is None
    rows = json.loads((tmp_path / "latency.json").read_text())
    assert [row["file"] for row in rows] == ["encoder-fp32.onnx", "encoder-int4.onnx"]


def test_an_output_with_two_dots_is_looked_at_where_it_is_written(inputs, ssql_ends, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inputs / "plain", tmp_path / "models" / "a")
    before = listing(tmp_path)
    words = ["quantize", "--encoder", inputs / "plain", *DATA, "--examples", "8", "--overwrite", "true"]
    said = ssql_ends(*words, "--output", "out/../models")
    assert said is not None and "models holds what is not of an encoder (a)" in said
    assert listing(tmp_path) == before
