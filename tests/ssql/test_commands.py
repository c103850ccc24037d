"""`ssql export` and `ssql verify` as they are typed."""

import json
import logging
import re
import sys

import onnx
import pytest
from written import unmeasured

import export
import quant
from encoders import Head, load_encoder, save_encoder, state_sha256, weights_sha256
from ssql import cli

WORDS = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "60", "--data.test_size", "40"]


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    words = ["--encoder", saved, "--output", folder, "--bit_width", "[fp, w8a8]", "--input", "waveform"]
    words += [*WORDS, "--task", "word", "--licence", "MIT", "--trained_on", "noise"]
    verified, verify = [], export.verify
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.write.verify", lambda *args: verified.append(args) or verify(*args))
        patch.setattr("export.verify", lambda *args: pytest.fail("verified a second time"))
        patch.setattr("export.runtime.bench.COLD_STARTS", 1)
        patch.setattr(sys, "argv", ["ssql", "export", *map(str, words)])
        cli.main()
    assert len(verified) == 2  # each file once
    return folder


def test_export_writes_probed_files_reports_and_a_card(exported):
    config = json.loads((exported / "config.json").read_text())
    assert [entry["file"] for entry in config["files"]] == ["encoder-fp32.onnx", "encoder-int8.onnx"]
    assert (config["input"], config["head"]["label"], config["licence"]) == ("waveform", "word", "MIT")
    assert config["trained_on"] == "noise"
    for entry in config["files"]:
        report = json.loads((exported / entry["file"]).with_suffix(".verification.json").read_text())
        assert report["passed"]
        assert report["accuracy"]["clips"] == 40
        assert entry["accuracy"] == {"word": report["accuracy"]["onnx"]}
        assert entry["latency_ms"].keys() == {"1", "10"}
        outputs = onnx.load(exported / entry["file"]).graph.output
        assert [output.name for output in outputs] == ["features", "feature_lengths", "logits"]
    assert "| word, % (this file) |" in (exported / "README.md").read_text()


def test_verify_needs_only_the_file_and_the_encoder(exported, saved, ssql, capsys):
    ssql("verify", "--file", exported / "encoder-int8.onnx", "--encoder", saved, *WORDS)
    verdict, *details = capsys.readouterr().out.splitlines()
    assert verdict.startswith(
        f"{exported / 'encoder-int8.onnx'}: verified, the file agrees with torch at w8a8 on given"
    )
    assert details[0] == "  numbers: integers equal in 8 layers"
    compared = r"error over variance \S+ over 670 frames of 41 clips"
    assert re.fullmatch(rf"  features, each side with its own roundings: {compared}", details[1])
    assert [line for line in details if line.startswith("  word accuracy ")]


def test_verify_of_a_damaged_file_ends_with_an_error_and_removes_nothing(exported, saved, ssql, tmp_path, capsys):
    proto = onnx.load(exported / "encoder-int8.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "encoder.blocks.0.mlp.0.weight_integers")
    integers = onnx.numpy_helper.to_array(tensor).copy()
    integers[0, 0] ^= 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(integers, tensor.name))
    path = tmp_path / "encoder.onnx"
    onnx.save(proto, path)
    with pytest.raises(SystemExit, match=r"ssql verify: error: .*first difference in layer blocks\.0\.mlp\.0"):
        ssql("verify", "--file", path, "--encoder", saved)
    assert path.exists()
    assert json.loads(path.with_suffix(".verification.json").read_text())["first_difference"] == "blocks.0.mlp.0"


def measured(folder) -> dict:
    encoder = load_encoder(folder)
    row = {"method": "mine", "task": "digit", "bit_width": "w4a8", "metric": "linear", "value": 81.25}
    return row | {"weights_sha256": weights_sha256(encoder)}


def test_a_later_export_joins_the_card_with_results_of_evaluate(saved, ssql, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(export, "measure_files", unmeasured)
    head = Head("ctc", 32, ["a", "b"], label="text")  # beside the encoder: it goes into the files
    save_encoder(load_encoder(saved), tmp_path / "model", head=head)
    words = ["--encoder", tmp_path / "model", "--output", tmp_path / "files"]
    ssql("export", *words, "--bit_width", "fp", "--float16", "true")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"writing file 1 of 1, {tmp_path / 'files' / 'encoder-fp16.onnx'} at fp"
    assert said[1] == "comparing with torch at fp on 12 clips of shipped speech"
    others = [
        {"weights_sha256": "f00d", "value": 1.0},
        {"metric": "knn", "value": 2.0},
        {"file_sha256": "1", "value": 3},
    ]
    (tmp_path / "accuracy.json").write_text(json.dumps([measured(saved) | other for other in ({}, *others)]))
    ssql("export", *words, "--bit_width", "w4a8", "--accuracy", tmp_path / "accuracy.json")
    config = json.loads((tmp_path / "files" / "config.json").read_text())
    assert config["head"] == head.arguments
    assert [entry["file"] for entry in config["files"]] == ["encoder-fp16.onnx", "encoder-int4.onnx"]
    assert config["files"][1]["accuracy"] == {}
    assert config["files"][1]["accuracy_in_torch"] == {"digit, %, linear probe": 81.25}
    assert "| digit, %, linear probe (torch) |" in (tmp_path / "files" / "README.md").read_text()


def test_results_of_other_weights_ranges_or_heads_do_not_come_into_a_card(saved, ssql, tmp_path):
    encoder = load_encoder(saved)
    row = measured(saved)
    next(iter(quant.quant_layers(encoder).values())).activation_max.mul_(0.01)
    save_encoder(encoder, tmp_path / "shrunk")
    head = Head("classification", 32, ["a", "b"], label="digit")
    save_encoder(load_encoder(saved), tmp_path / "headed", head=head)
    words = ["--output", tmp_path / "files", "--bit_width", "w4a8", "--accuracy", tmp_path / "accuracy.json"]
    cases = {
        (saved, "does not say which weights its results are of"): {"weights_sha256": None},
        (tmp_path / "shrunk", rf"of other weights or other ranges \({row['weights_sha256'][:8]}\) than those of"): {},
        (saved, "results of the head abcd, .* has no head"): {"head_sha256": "abcd"},
        (tmp_path / "headed", f"results of the head abcd, .* has the head {state_sha256(head)[:8]}"): {
            "head_sha256": "abcd"
        },
    }
    for (folder, message), change in cases.items():
        (tmp_path / "accuracy.json").write_text(json.dumps([row | change]))
        with pytest.raises(SystemExit, match=message):
            ssql("export", "--encoder", folder, *words)
    (tmp_path / "accuracy.json").write_text(json.dumps([row, row | {"value": 3.0}]))
    with pytest.raises(SystemExit, match="two results of digit, %, linear probe at w4a8"):
        ssql("export", "--encoder", saved, *words)
    assert not (tmp_path / "files").exists()


def test_words_that_do_not_go_together_are_refused(saved, ssql, tmp_path):
    with pytest.raises(SystemExit, match="a task needs data to learn it from"):
        ssql("export", "--encoder", saved, "--output", tmp_path, "--task", "word")
    with pytest.raises(SystemExit, match="config.json holds the description of an encoder and would be replaced"):
        ssql("export", "--encoder", saved, "--output", saved, "--bit_width", "w8a8")
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_bench_takes_files_and_leaves_rows_and_a_plot(exported, ssql, tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    files = [exported / "encoder-fp32.onnx", exported / "encoder-int8.onnx"]
    monkeypatch.setattr("export.runtime.bench.COLD_STARTS", 1)
    ssql("bench", *files, "--seconds", "[0.5]", "--repeats", "2", "--output", tmp_path / "latency")
    rows = json.loads((tmp_path / "latency.json").read_text())
    assert [(row["file"], row["threads"]) for row in rows] == [(file.name, t) for t in (1, 2) for file in files]
    said = [record.getMessage() for record in caplog.records if record.name == "export.runtime.bench"]
    for threads in ("1 thread", "2 threads"):
        steps, said = said[:5], said[5:]
        for step, what in zip(
            steps,
            (
                f"measuring start and memory, 0.5 s on {threads}: file 1 of 2, {files[0]}",
                f"measuring start and memory, 0.5 s on {threads}: file 2 of 2, {files[1]}",
                f"measuring latency, 0.5 s on {threads}: 2 files in turn",
                f"encoder-fp32.onnx, 0.5 s on {threads}: ",
                f"encoder-int8.onnx, 0.5 s on {threads}: ",
            ),
            strict=True,
        ):
            assert step.startswith(what)
        assert re.search(r"; \d of 8 steps done, about \d:\d\d:\d\d left$", steps[2])
        assert re.search(r": [\d.]+ ms \(fastest [\d.]+\), start \d+ ms, \d+ MB$", steps[4])
    assert not said
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("encoder-int8") == 1 + 2  # a line of the files, two of the latencies
    with pytest.raises(SystemExit, match="nowhere.onnx does not exist"):
        ssql("bench", "nowhere.onnx")
