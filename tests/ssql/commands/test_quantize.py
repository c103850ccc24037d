"""`ssql quantize` as it is typed: what it says, what it keeps when it is interrupted, and what it refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import quant
from encoders import SpeechTransformer, VisionEncoder, load_encoder, save_encoder
from quant.bias_correction import rounded_bit_widths
from quant.rounding import walk
from ssql.cli import main
from ssql.evaluation.layer_progress import LayerProgress

DATA = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "12", "--data.test_size", "4"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An encoder that is not prepared, as `ssql import` leaves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("imported") / "encoder"
    save_encoder(SpeechTransformer(width=16, depth=2, heads=2), folder)
    return folder


@pytest.fixture
def said(imported, monkeypatch, capsys, tmp_path, speak_once):
    """Run it, and give back its exit code, or its error, and what it printed."""

    def run(*words):
        words = ["quantize", "--encoder", imported, *DATA, "--output", tmp_path / "out", *words]
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as stopped:
            return stopped.code or 0, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_two_bit_widths_at_once(said, tmp_path):
    code, out = said("--bit_width", "[w8a8, w3a8]")
    assert code == 0
    encoder = load_encoder(tmp_path / "out")
    assert list(map(str, rounded_bit_widths(encoder))) == ["w3a8"]  # nearest at 8 bits
    assert list(map(str, quant.corrected_bit_widths(encoder))) == ["w8a8", "w3a8"]
    assert quant.policy_of(encoder).activation_range == "per_token"
    assert out.count("blocks.1.mlp.2") == 1
    shares = [float(line.split(" by ")[1].split(" %")[0]) for line in out.splitlines() if "features differ" in line]
    assert shares[0] < shares[1] < 20
    assert not list(tmp_path.glob("*.ssql-layers"))


def test_an_interrupted_run_goes_on_where_it_was(said, tmp_path, monkeypatch):
    code, out = said("--bit_width", "w4a8", "--output", tmp_path / "whole")
    assert code == 0
    save, done = LayerProgress.save, []

    def save_five(self, rows, bit_width):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(rows)
        save(self, rows, bit_width)

    monkeypatch.setattr(LayerProgress, "save", save_five)
    assert said("--bit_width", "w4a8")[0] == 130
    kept = tmp_path / "out.ssql-layers"
    assert len(list(kept.iterdir())) == 5 and not (tmp_path / "out").exists()
    (kept / "notes.txt").write_text("mine", encoding="utf-8")

    code, _ = said("--bit_width", "w4a8", "--policy.activation_range", "static")
    assert "out.ssql-layers has layers of another encoder, policy or data" in str(code)
    file = next(kept.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:100])
    assert f"{file.name} cannot be read" in str(said("--bit_width", "w4a8")[0])
    file.write_bytes(content)
    assert len(list(kept.iterdir())) == 6

    solved = []
    solve = walk.round_for_outputs
    monkeypatch.setattr(walk, "round_for_outputs", lambda *args: (solved.append(args), solve(*args))[1])
    monkeypatch.setattr(LayerProgress, "save", save)
    code, again = said("--bit_width", "w4a8")
    assert code == 0
    assert again.replace("/out", "/whole") == out  # the table has the layers that were done before
    layers = len(quant.quant_layers(load_encoder(tmp_path / "out")))
    assert len(solved) == layers - sum(map(len, done))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole | resumed)
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def save_one(monkeypatch):
    """An interruption once the first layers are kept; gives back how it ends."""
    save = LayerProgress.save

    def save_and_stop(self, rows, bit_width):
        save(self, rows, bit_width)
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerProgress, "save", save_and_stop)
    return lambda: monkeypatch.setattr(LayerProgress, "save", save)


@pytest.mark.parametrize("other", [["--bit_width", "w3a8"], ["--bit_width", "w4a8", "--rounding", "nearest"]])
def test_layers_at_a_bit_width_that_is_not_rounded_stay_where_they_are(said, tmp_path, monkeypatch, other):
    go_on = save_one(monkeypatch)
    assert said("--bit_width", "w4a8")[0] == 130
    go_on()
    kept = list((tmp_path / "out.ssql-layers").iterdir())
    assert said(*other)[0] == 0 and list((tmp_path / "out.ssql-layers").iterdir()) == kept
    assert said(*other, "--output", tmp_path / "clean")[0] == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "clean"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    load_encoder(tmp_path / "out")


def test_a_policy_changes_what_it_names_alone(said, tmp_path):
    for words, expected in (
        (["--policy.weight_range", "mse"], "per_token"),
        (["--policy.smooth", "true"], "static"),
        (["--policy.activation_range", "static"], "static"),
    ):
        assert said("--bit_width", "w8a8", *words, "--overwrite", "true")[0] == 0
        assert quant.policy_of(load_encoder(tmp_path / "out")).activation_range == expected


def test_layers_of_few_bits_are_rounded_on_data_whatever_the_run_is_called(said):
    assert "w8a8: what a layer" in said("--bit_width", "w8a8", "--policy.layers", '{"blocks.*": "w4"}')[1]


def test_a_policy_that_leaves_all_in_float_is_refused(said, tmp_path):
    words = ["--bit_width", "w4a8", "--policy.first_layer", "fp", "--policy.layers", '{"*": "fp"}']
    assert "leaves every layer in float at w4a8" in str(said(*words)[0])
    assert not (tmp_path / "out").exists()


def test_layers_of_another_run_go_when_they_are_to_be_overwritten(said, tmp_path, monkeypatch):
    go_on = save_one(monkeypatch)
    assert said("--bit_width", "w4a8")[0] == 130
    go_on()
    assert "another encoder, policy or data" in str(said("--bit_width", "w4a8", "--examples", "3")[0])
    assert said("--bit_width", "w4a8", "--examples", "3", "--overwrite", "true")[0] == 0
    assert not (tmp_path / "out.ssql-layers").exists()


def test_the_nearest_integers_with_corrected_biases(said, tmp_path):
    assert said("--bit_width", "w4a8", "--rounding", "nearest")[0] == 0
    encoder = load_encoder(tmp_path / "out")
    assert rounded_bit_widths(encoder) == []
    assert list(map(str, quant.corrected_bit_widths(encoder))) == ["w4a8"]


def test_bits_that_are_shared_out_are_one_model(said, tmp_path):
    assert "give one bit-width, such as w8a8" in str(said("--bit_width", "[w4a8, w2a8]", "--average_bits", "4")[0])
    assert "average_bits must be 8 at most, got 99" in str(said("--bit_width", "w8a8", "--average_bits", "99")[0])


def test_data_of_another_modality_is_named(said, tmp_path):
    save_encoder(
        VisionEncoder("resnet10t", 1, model_arguments={"stem_width": 8, "channels": [8, 16, 24, 32]}),
        tmp_path / "image",
    )
    assert "image is an encoder for image, the data is audio" in str(said("--encoder", tmp_path / "image")[0])


def test_an_output_that_another_process_has_just_written_is_refused(said, tmp_path, monkeypatch):
    entered = LayerProgress.__init__

    def written_meanwhile(self, output, encoder, *arguments):
        entered(self, output, encoder, *arguments)
        save_encoder(encoder, output)

    monkeypatch.setattr(LayerProgress, "__init__", written_meanwhile)
    assert "out exists already" in str(said("--bit_width", "w4a8")[0])
    assert not (tmp_path / "out.ssql-layers").exists()


def test_what_is_quantized_at_several_bits_trains_by_the_recipe(tmp_path, monkeypatch):
    """The commands at the end of docs/quantize.md, with Whisper's shape in small."""
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=64, depth=1, heads=2, positions=100, log_mel="whisper_filled", pooling=1)
    save_encoder(encoder, tmp_path / "encoder")
    for n in range(10):
        noise = 0.1 * np.random.default_rng(n).standard_normal(8_000)
        soundfile.write(tmp_path / f"{n}.wav", noise, 16_000)

    def ssql(*words):
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        main()

    recordings = ["--data", "AudioFolder", "--data.root", tmp_path, "--data.labels", "null"]
    policy = ["--policy.activation_range", "per_token", "--policy.granularity", "per_group_64"]
    ssql("quantize", "--encoder", tmp_path / "encoder", "--output", tmp_path / "groups", *recordings, *policy,
         "--policy.layers", '{"conv2": "/per_channel"}', "--bit_width", "[w8a8, w4a8, w3a8, w2a8]")  # fmt: skip
    recipe = Path(__file__).parents[3] / "experiments/whisper/distilled_tiny.yaml"
    ssql("pretrain", "--config", recipe, "--output", tmp_path / "run", "--model.encoder.folder", tmp_path / "groups",
         "--data.root", tmp_path, "--trainer.max_steps", "2", "--trainer.precision", "32-true",
         "--model.warmup_steps", "0")  # fmt: skip
    trained, before = load_encoder(tmp_path / "run/encoder"), load_encoder(tmp_path / "groups")
    clip = torch.randn(1, 8_000)
    # Two steps may draw w3a8 alone beside w2a8.
    for bit_width, same in {"fp": True, "w8a8": True, "w2a8": False}.items():
        with torch.no_grad(), quant.at(trained, bit_width), quant.at(before, bit_width):
            assert torch.equal(trained.embed_raw(clip), before.embed_raw(clip)) == same, bit_width


def test_what_was_never_quantized_is_exported_at_full_precision_alone(imported, monkeypatch, tmp_path):
    words = ["export", "--encoder", imported, "--output", tmp_path / "files", "--bit_width", "w8a8"]
    monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
    with pytest.raises(SystemExit, match="was never quantized: run ssql quantize first"):
        main()
    assert not list(tmp_path.rglob("*.onnx"))
