"""Files of strangers and odd data, as they meet a user: one sentence, at once, and nothing else."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
from written import SIMSIAM

from ssql import cli

NOISE = np.random.default_rng(0).standard_normal(8_000).astype(np.float32) / 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve clips of two classes."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(12):
        place = folder / "ab"[index % 2]
        place.mkdir(exist_ok=True)
        soundfile.write(place / f"{index}.wav", NOISE[index * 10 :], 16_000)
    return folder


@pytest.fixture
def said(monkeypatch, capsys):
    """Run a command that must fail with a sentence, and give the sentence."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code not in (0, None)
        sentence = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
        assert "Traceback" not in sentence
        return str(sentence)

    return run


def evaluate(encoder, output, root, *more):
    data = ["--data", "AudioFolder", "--data.root", root, "--data.batch_size", "4", *more]
    return ["evaluate", "--encoders.mine", encoder, "--output", output, "--bit_widths", "[fp, w8a8]", *data]


def rows(clips, column, split, value):
    lines = [f"path,split,{column}"]
    for index in range(12):
        lines.append(f"{'ab'[index % 2]}/{index}.wav,{split(index)},{value(index)}")
    (clips / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    return clips / "m.csv"


def every_third(index):
    return "test" if index % 3 == 2 else "train"


@pytest.mark.parametrize(
    ("column", "split", "value", "message"),
    [
        (
            "pitch (Hz)",
            every_third,
            lambda i: 5,
            "pitch is 5 Hz in all 4 items of the test split: R2, error",
        ),
        (
            "pitch (Hz)",
            every_third,
            lambda i: "nan" if i == 4 else i,
            "m.csv row 6: pitch (Hz) is 'nan', not a",
        ),
        (
            "pitch (Hz)",
            lambda i: "test" if i == 3 else "train",
            lambda i: i,
            "pitch is 3 Hz in all 1 items of the",
        ),
        ("word", every_third, lambda i: "b" if i % 3 == 2 else "a", "all 8 training items have the same word, 'a'"),
        (
            "word",
            lambda i: "train",
            lambda i: "ab"[i % 2],
            "none of them is in the test split: mark files",
        ),
        (
            "word",
            lambda i: "test",
            lambda i: "ab"[i % 2],
            "none of them is in the train split: mark files",
        ),
    ],
)
def test_labels_that_nothing_can_be_learned_from(pretrained, clips, tmp_path, said, column, split, value, message):
    manifest = rows(clips, column, split, value)
    assert message in said(*evaluate(pretrained, tmp_path / "out", clips, "--data.labels", manifest))


def test_a_class_that_training_does_not_have_is_an_honest_miss(pretrained, clips, tmp_path, monkeypatch):
    manifest = rows(clips, "word", every_third, lambda i: "c" if i == 2 else "ab"[i % 2])
    words = evaluate(pretrained, tmp_path / "out", clips, "--data.labels", manifest)
    monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
    cli.main()
    results = json.loads((tmp_path / "out" / "accuracy.json").read_text(encoding="utf-8"))
    assert all(row["clips"] == 4 and row["value"] <= 75 for row in results if row["metric"] == "linear")


def test_few_files(pretrained, clips, tmp_path, said):
    (tmp_path / "few" / "a").mkdir(parents=True)
    for index in range(7):
        shutil.copy(clips / "a" / "0.wav", tmp_path / "few" / "a" / f"{index}.wav")
    message = "has 7 usable files, which leave no test split: every tenth file is a test file, so give at least 10"
    assert message in said(*evaluate(pretrained, tmp_path / "out", tmp_path / "few"))


def test_other_data_inside_is_asked_for(pretrained, tmp_path, said):
    for data in ("Subset", "Noisy"):
        words = ["quantize", "--encoder", pretrained, "--data", data, "--output", tmp_path / "out"]
        assert "--data.data SpokenWords" in said(*words)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"", "config.json is not JSON"),
        ("config.json", None, "config.json is a named pipe"),
        ("config.json", b'{"width": NaN}', "config.json is not JSON: NaN is no number of JSON"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", None, "model.safetensors is damaged"),
    ],
)
def test_an_encoder_with_an_empty_or_odd_file(pretrained, clips, tmp_path, said, name, content, message):
    folder = tmp_path / "encoder"
    shutil.copytree(pretrained, folder)
    (folder / name).unlink()
    os.mkfifo(folder / name) if content is None else (folder / name).write_bytes(content)
    words = ["features", clips / "a" / "0.wav", "--encoder", folder, "--output", tmp_path / "out"]
    assert message in said(*words)
    assert not (tmp_path / "out").exists()
    # Also where it is to be replaced: a pipe is not waited for.
    overwritten = ["quantize", "--encoder", folder, "--data", "SpokenWords", "--output", folder, "--overwrite", "true"]
    assert message in said(*overwritten)


def test_an_empty_onnx_file(pretrained, clips, tmp_path, said):
    (tmp_path / "a.onnx").touch()
    features = ["features", clips / "a" / "0.wav", "--encoder", tmp_path / "a.onnx", "--output", tmp_path / "out"]
    for words in (
        features,
        ["verify", "--file", tmp_path / "a.onnx", "--encoder", pretrained],
        ["bench", tmp_path / "a.onnx"],
    ):
        assert "a.onnx" in said(*words)


def test_a_mistyped_folder_and_odd_recordings(pretrained, clips, tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "words").mkdir(parents=True)
    sentence = said("features", clips / "a" / "0.wav", "--encoder", "runs/word", "--output", "out")
    assert (
        "no encoder at runs/word: no such folder; the nearest is runs/words; for the hub write hf-hub:runs/word"
        in sentence
    )
    os.mkfifo(tmp_path / "pipe.wav")
    sentence = said("features", "pipe.wav", "--encoder", pretrained, "--output", "out")
    assert "pipe.wav is a named pipe, not an audio file" in sentence


def test_rows_of_another_toolkit_are_not_numbers(tmp_path, said):
    (tmp_path / "rows.json").write_text('[{"method": "a", "value": NaN}]', encoding="utf-8")
    words = ["compare", "--rows", f"[{tmp_path / 'rows.json'}]", "--output", tmp_path / "out"]
    assert "rows.json is not JSON: NaN is no number of JSON" in said(*words)


PRETRAINING = (
    SIMSIAM
    + """
trainer: {max_steps: 1, accelerator: cpu, enable_progress_bar: false, logger: false, enable_model_summary: false}
calibration_batches: 1
"""
)


@pytest.mark.filterwarnings("ignore:.*(num_workers|GPU|treespec|LeafSpec|logging interval|eval mode|lr_scheduler).*")
def test_pretraining_needs_no_test_files(clips, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(PRETRAINING, encoding="utf-8")
    (tmp_path / "few").mkdir()
    for index in range(5):
        shutil.copy(clips / "a" / "0.wav", tmp_path / "few" / f"{index}.wav")
    os.mkfifo(tmp_path / "few" / "pipe.wav")
    data = ["--data", "AudioFolder", "--data.root", tmp_path / "few", "--data.batch_size", "4"]
    words = ["pretrain", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", *data]
    monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
    cli.main()
    assert (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
