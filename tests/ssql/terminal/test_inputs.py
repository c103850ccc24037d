"""What a command reads is looked at before what it would write, and a published model is told from an encoder."""

import json
import sys

import numpy as np
import pytest
import soundfile

from encoders import save_encoder
from ssql import cli

DATA = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "8", "--data.test_size", "4"]
NOWHERE = ["--data", "AudioFolder", "--data.root", "nowhere"]


@pytest.fixture
def said(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return f"{stopped.value.code} {capsys.readouterr().err}"

    return run


@pytest.fixture
def taken(pretrained, tmp_path):
    """A folder in which every command would find its output."""
    folder = tmp_path / "taken"
    folder.mkdir()
    names = ("accuracy.json", "tokens.json", "suite.partial.json", "latency.json", "encoder-int8.onnx", "page.html")
    for name in (*names, "stream-int8.onnx", "talk.safetensors"):
        (folder / name).write_text("mine")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "mine").write_text("mine")
    soundfile.write(tmp_path / "talk.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    return folder


def commands(taken, encoder, pretrained):
    recipe = [
        "--model",
        "SimSiam",
        "--model.augmentation",
        "SpeechAugmentation",
        "--model.encoder",
        "encoders.init_from",
        "--model.encoder.folder",
        encoder,
    ]
    steps = ["--trainer.max_steps", "1"]
    return {
        "quantize": ["--encoder", encoder, *DATA],
        "export": ["--encoder", encoder],
        "stream": ["--encoder", encoder],
        "evaluate": ["--encoders.a", encoder, *DATA],
        "evaluate_tokenizer": ["--tokenizers.a", encoder, *DATA],
        "suite": ["--encoders.a", encoder],
        "features": [taken.parent / "talk.wav", "--encoder", encoder],
        "finetune": ["--encoder", encoder, *DATA, "--task", "word", *steps],
        "tokenizer": ["--encoder", encoder, *DATA, *steps],
        "pretrain": [*recipe, *DATA, *steps],
    }


@pytest.mark.parametrize("command", commands(*[__import__("pathlib").Path()] * 3))
def test_a_mistyped_encoder_is_said_before_an_output_that_is_taken(command, taken, pretrained, said):
    words = commands(taken, "nowhere", pretrained)[command]
    assert "no encoder at nowhere: no such folder" in said(command, *words, "--output", taken)
    # The output is what is wrong once the encoder is there.
    words = commands(taken, pretrained, pretrained)[command]
    others = {"stream": "only a StreamingTransformer", "evaluate_tokenizer": "no tokenizer in"}
    assert others.get(command, "taken") in said(command, *words, "--output", taken)


@pytest.mark.parametrize("command", ["quantize", "export", "evaluate", "finetune", "tokenizer", "pretrain"])
def test_a_mistyped_folder_of_data_as_well(command, taken, pretrained, said):
    words = [word for word in commands(taken, pretrained, pretrained)[command] if word not in DATA]
    sentence = said(command, *words, *NOWHERE, "--output", taken)
    assert "--data.root nowhere: there is no such folder" in sentence


def test_other_inputs_as_well(taken, pretrained, said):
    cases = {
        ("import", "--weights", "nowhere", "--output", taken): "no weights at nowhere",
        ("bench", "nowhere.onnx", "--output", taken / "latency"): "nowhere.onnx does not exist",
        ("features", "nowhere.wav", "--encoder", pretrained, "--output", taken): "nowhere.wav does not exist",
        ("compare", "--rows", "[nowhere.json]", "--output", taken): "nowhere.json",
        ("report", "--runs", "[nowhere]", "--output", taken / "page.html"): "nowhere",
        ("evaluate", "--encoders.a", "nowhere.onnx", *DATA, "--output", taken): "nowhere.onnx does not exist",
    }
    for words, sentence in cases.items():
        assert sentence in said(*words)


@pytest.mark.parametrize("command", ["quantize", "export", "evaluate", "features", "finetune", "pretrain"])
def test_a_published_model_has_to_be_imported(command, taken, pretrained, said, tmp_path):
    published = tmp_path / "whisper-tiny"
    published.mkdir()
    (published / "config.json").write_text(json.dumps({"model_type": "whisper", "d_model": 384}))
    (published / "model.safetensors").write_bytes(b"")
    (published / "tokenizer.json").write_text("{}")
    sentence = said(command, *commands(taken, published, pretrained)[command], "--output", tmp_path / "out")
    assert f"{published} is a published model (whisper), not an encoder that ssql saved" in sentence
    assert f"`ssql import --weights {published} --output ENCODER`" in sentence
    (published / "model.bin").write_bytes(b"")
    sentence = said(command, *commands(taken, published, pretrained)[command], "--output", tmp_path / "out")
    assert f"{published} is a model of CTranslate2 (model.bin), which is a reader's (--reader.folder)" in sentence
    (published / "model.bin").unlink()
    (published / "config.json").write_text(json.dumps({"files": [], "encoder": {}}))
    sentence = said(command, *commands(taken, published, pretrained)[command], "--output", tmp_path / "out")
    assert f"{published} has files of ssql export and their card" in sentence
    for name, hint in {"base.pt": "ssql import --weights", "a.onnx": "that this ONNX file was exported from"}.items():
        (tmp_path / name).write_bytes(b"")
        if command in ("quantize", "export"):
            sentence = said(
                command, *commands(taken, tmp_path / name, pretrained)[command], "--output", tmp_path / "out"
            )
            assert hint in sentence


def test_a_saved_encoder_is_none(pretrained, tmp_path):
    from encoders import check_encoder_folder, load_encoder

    save_encoder(load_encoder(pretrained), tmp_path / "again")
    check_encoder_folder(tmp_path / "again")
