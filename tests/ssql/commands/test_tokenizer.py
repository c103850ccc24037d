"""The whole `ssql tokenizer`: codebooks that are used, frozen and learning encoders, resuming, bad input."""

import csv
import json
import sys

import pytest
import safetensors.torch
import torch

import quant
from encoders import load_encoder, load_tokenizer
from ssql.cli import main
from ssql.commands.compare import compare
from ssql.commands.evaluate_tokenizer import evaluate_tokenizer
from ssql.commands.quantize import quantize
from ssql.commands.tokenizer import tokenizer
from ssql.data import SpokenWords
from ssql.evaluation.token_agreement import tokenize_split
from ssql.tokenizing.training import TokenizerTraining, whitening

# Warnings are those of Lightning; runs have them on stderr.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("speak_once")]

CONFIG = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_epochs: 3, accelerator: cpu,
  log_every_n_steps: 1}
linguistic_codes: 8
semantic_codes: 12
model: {codebooks: {code_dim: 6}}
data:
  class_path: ssql.data.SpokenWords
  init_args: {languages: [en-us], train_size: 60, test_size: 20, batch_size: 16}
validation: 0.2
checkpoint_steps: 2
start_batches: 2
"""


@pytest.fixture
def run(tmp_path, pretrained):
    (tmp_path / "config.yaml").write_text(CONFIG)

    def run(folder, *arguments, encoder=pretrained):
        words = ["--config", str(tmp_path / "config.yaml"), "--encoder", str(encoder)]
        return tokenizer([*words, "--output", str(tmp_path / folder), *arguments])

    return run


def state(model, name="tokenizer"):
    return safetensors.torch.load_file(model / f"{name}.safetensors")


def logged(model, quantity):
    with (model.parent / "logs" / "version_0" / "metrics.csv").open(newline="") as text:
        return [float(line[quantity]) for line in csv.DictReader(text) if line[quantity]]


def test_a_frozen_encoder_stays_and_its_codes_are_used(run, pretrained):
    model = run("run", "--trainer.max_epochs", "8", "--model.optimizer.lr", "0.01")
    before, after = state(pretrained, "model"), state(model, "model")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    reconstruction = logged(model, "val/reconstruction")
    assert reconstruction[-1] < reconstruction[0]
    assert reconstruction[-1] < 0.85  # 1 is a constant answer
    # What was logged at the end is what the folder's tokens show.
    encoder, loaded = load_encoder(model), load_tokenizer(model)
    assert (len(loaded.linguistic.codebook), loaded.semantic.codebook.shape) == (8, (12, 6))
    data = SpokenWords(languages=["en-us"], train_size=60, test_size=20)
    tokens = tokenize_split(encoder, loaded, data, "test", "fp")
    for name, codes in (("linguistic", 8), ("semantic", 12)):
        assert logged(model, f"val/{name}/use")[-1] > 50
        assert 1 < logged(model, f"val/{name}/perplexity")[-1] <= codes
        assert len(torch.cat(tokens[name]).unique()) > codes / 2


def test_quantized_passes_move_the_projection(run):
    plain, drawn = (
        run("plain", "--trainer.max_epochs", "1"),
        run("drawn", "--trainer.max_epochs", "1", "--ssql", "true"),
    )
    assert not torch.equal(state(plain)["semantic.projection.weight"], state(drawn)["semantic.projection.weight"])
    # With a frozen encoder nothing of the linguistic stream learns from them.
    assert torch.equal(state(plain)["linguistic.codebook"], state(drawn)["linguistic.codebook"])
    assert len(logged(drawn, "semantic/loss_quantized")) == 3


def test_an_encoder_that_learns_gets_new_ranges(run, pretrained):
    model = run("run", "--freeze", "false", "--ssql", "true")
    before, after = state(pretrained, "model"), state(model, "model")
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["blocks.0.mlp.2.activation_max"], after["blocks.0.mlp.2.activation_max"])
    with quant.at(load_encoder(model), "w4a4"):
        pass


# Three steps an epoch, checkpoints at 2 and 3, 5 and 6: within an epoch and at the end of one.
@pytest.mark.parametrize(("step", "words"), [(5, []), (7, ["--ssql", "true"])])
def test_an_interrupted_run_goes_on_exactly(run, monkeypatch, step, words):
    whole = run("whole", *words)

    def interrupted(self, *args):
        if self.global_step == step:
            raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTraining, "on_train_batch_end", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            run("half", *words)
    resumed = run("half", *words, "--resume", "true")
    first, second = state(whole), state(resumed)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_the_seed_decides_everything(run):
    first, again, other = run("a"), run("b"), run("c", "--model.seed", "1")
    assert all(torch.equal(state(first)[key], state(again)[key]) for key in state(first))
    assert not torch.equal(state(first)["linguistic.codebook"], state(other)["linguistic.codebook"])


def test_measured_calibrated_and_merged_by_commands(run, tmp_path):
    model = run("run", "--trainer.max_epochs", "1")
    data = SpokenWords(languages=["en-us"], train_size=60, test_size=20, batch_size=10)
    quantize(
        str(model), data, str(tmp_path / "again"), "w8a8", policy=quant.Policy(shift=True), observer="mse", examples=8
    )
    assert all(torch.equal(state(model)[key], state(tmp_path / "again")[key]) for key in state(model))
    tokenizers = {"a": str(model), "b": str(tmp_path / "again")}
    evaluate_tokenizer(tokenizers, data, str(tmp_path / "tokens"), ["fp", "w2a4"], 2)
    names = {f"tokens.{ending}" for ending in ("json", "csv", "md", "png")}
    assert {file.name for file in (tmp_path / "tokens").iterdir()} == names
    assert "| linguistic | b | 100.0 (100.0 to 100.0) |" in (tmp_path / "tokens" / "tokens.md").read_text()
    rows, other = tmp_path / "tokens" / "tokens.json", tmp_path / "of_other_weights.json"
    other.write_text(json.dumps([row | {"weights_sha256": "0" * 64} for row in json.loads(rows.read_text())]))
    compare([str(rows), str(other)], str(tmp_path / "both"))
    assert "| semantic | a | 100.0 ± 0.0 |" in (tmp_path / "both" / "accuracy.md").read_text()
    with pytest.raises(FileExistsError, match="tokens.json exists already"):
        evaluate_tokenizer(tokenizers, data, str(tmp_path / "tokens"))


def test_a_folder_without_a_tokenizer(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer in .*encoder: give what ssql tokenizer wrote"):
        evaluate_tokenizer({"a": str(pretrained)}, SpokenWords(), str(tmp_path / "tokens"))


def test_whitened_frames_have_unit_variance_in_the_leading_directions():
    torch.manual_seed(0)
    frames = torch.randn(500, 6) * torch.tensor([5.0, 3.0, 2.0, 0.1, 0.1, 0.1]) + 7
    projected = (frames - frames.mean(dim=0)) @ whitening(frames, 3).T
    assert torch.allclose(torch.cov(projected.T), torch.eye(3), atol=1e-4)
    # The first three components hold nearly all there is.
    kept = torch.linalg.lstsq(projected, frames - frames.mean(dim=0)).solution
    assert ((projected @ kept + frames.mean(dim=0) - frames).square().mean() / frames.var()) < 0.01
    assert torch.equal(whitening(frames, 8)[6:], torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "nowhere"], "no encoder at nowhere: no such folder"),
        (["--encoder", "VisionEncoder"], "tokens need an encoder of frames"),
        (["--data", "Digits"], "encoder takes audio, not image"),
        (["--linguistic_codes", "1"], "codebooks need two codes or more"),
        (["--resume", "true"], "nothing to resume"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, pretrained, arguments, message):
    (tmp_path / "config.yaml").write_text(CONFIG)
    start = ["--encoder", str(pretrained)] if "--encoder" not in arguments else []
    words = ["--config", str(tmp_path / "config.yaml"), *start, "--output", str(tmp_path / "run"), *arguments]
    monkeypatch.setattr(sys, "argv", ["ssql", "tokenizer", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = stopped.value.code
    assert isinstance(said, str)
    assert said.startswith("ssql tokenizer: error:")
    assert message in said
    assert "\n" not in said
