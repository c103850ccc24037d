"""The whole `ssql finetune`, in this process and as a user runs it: every mode, resuming, bad input."""

import json
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from written import to_file

import quant
from encoders import (
    SpeechTransformer,
    VisionEncoder,
    load_encoder,
    load_head,
    save_encoder,
    state_sha256,
    weights_sha256,
)
from export.runtime.session import open_session
from ssql.cli import main
from ssql.commands.finetune import finetune
from ssql.data import SpokenWords
from ssql.data.held_out import HeldOut
from ssql.finetuning.training import Finetuning

# Warnings are those of Lightning; runs have them on stderr.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("speak_once")]

CONFIG = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_epochs: 3, logger: false, accelerator: cpu}
task: word
model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}}}
data:
  class_path: ssql.data.SpokenWords
  init_args: {languages: [en-us], train_size: 70, test_size: 30, batch_size: 16}
validation: 0.2
checkpoint_steps: 2
calibration_batches: 2
"""
MODES = {
    "bfloat16": ["--bit_width", "w4a4", "--trainer.precision", "bf16-mixed"],
    "fp": ["--bit_width", "fp"],
    "min_max": ["--bit_width", "w4a4"],
    "shift": ["--bit_width", "w4a4", "--model.precision.policy.shift", "true"],
    "lsq": ["--bit_width", "w4a4", "--quantizer", "lsq"],
    "random": ["--bit_width", "random"],
    "freeze": ["--bit_width", "w4a8", "--freeze", "true"],
    "nf4": ["--model.adapters.base", "nf4", "--model.precision.test_at", "[fp, w8a8]"],
    "int8": ["--model.adapters.base", "int8"],
    "8-bit": ["--model.optimizer", "bitsandbytes.optim.AdamW8bit", "--model.optimizer.min_8bit_size", "64"],
}
TESTED = {
    "fp": {"fp"},
    "random": {"fp", "w8a8", "w4a8", "w4a4", "w2a4"},
    "freeze": {"w4a8"},
    "nf4": {"fp", "w8a8"},
    "int8": {"fp"},
    "8-bit": {"fp"},
}


@pytest.fixture
def run(tmp_path, pretrained):
    (tmp_path / "config.yaml").write_text(CONFIG)

    def run(folder, *arguments, encoder=pretrained):
        words = ["--config", str(tmp_path / "config.yaml"), "--encoder", str(encoder)]
        return finetune([*words, "--output", str(tmp_path / folder), *arguments])

    return run


def accuracy(model, bit_width):
    """Of a folder's encoder and head, without Lightning and torchmetrics."""
    encoder, head = load_encoder(model), load_head(model)
    data = SpokenWords(languages=["en-us"], train_size=70, test_size=30)
    batch = next(iter(data.evaluation_dataloader("test")))
    with torch.no_grad(), quant.at(encoder, bit_width):
        logits = head(encoder.embed_raw(batch["inputs"], batch["lengths"]))
    return 100 * (logits.argmax(dim=1) == batch["labels"]["word"]).float().mean().item()


def state(model, name="model"):
    return safetensors.torch.load_file(model / f"{name}.safetensors")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_leaves_a_folder_that_answers_as_it_was_tested(run, mode):
    model = run("run", *MODES[mode])
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json",
        "head.json",
        "head.safetensors",
        "model.safetensors",
    ]
    rows = json.loads((model.parent / "results.json").read_text())
    assert {row["bit_width"] for row in rows} == TESTED.get(mode, {"w4a4"})
    for row in rows:
        assert (row["task"], row["metric"], row["unit"], row["clips"]) == ("word", "accuracy", "%", 30)
        assert row["value"] == pytest.approx(accuracy(model, row["bit_width"]), abs=1e-4)
    head = load_head(model)
    hashes = {"weights_sha256": weights_sha256(load_encoder(model)), "head_sha256": state_sha256(head)}
    assert all(row | hashes == row for row in rows)
    assert (head.task, head.label, head.classes[7]) == ("classification", "word", "en-us/seven")


def test_a_longer_run_learns(run):
    model = run("run", "--bit_width", "w4a4", "--trainer.max_epochs", "30", "--model.optimizer.lr", "0.01")
    row = json.loads((model.parent / "results.json").read_text())[0]
    assert row["value"] > 50  # of ten words


def test_steps_are_learned_and_come_back(run, pretrained):
    model = run("run", *MODES["lsq"])
    encoder = load_encoder(model)
    assert quant.learned_bit_width(encoder) == quant.parse_bit_width("w4a4")
    start = load_encoder(pretrained)
    layer, before = encoder.blocks[0].mlp[0], start.blocks[0].mlp[0]
    assert not torch.equal(layer.weight, before.weight)
    _, scale = before.weight_integers(quant.BitWidth(4))
    moved = (layer.weight_step.flatten() / scale.flatten() - 1).abs()
    assert 1e-3 < moved.max() < 0.5
    # A second run goes on from the folder's steps and its head.
    again = run("again", *MODES["lsq"], "--trainer.max_epochs", "1", encoder=model)
    assert quant.learned_bit_width(load_encoder(again)) == quant.parse_bit_width("w4a4")


def test_a_frozen_encoder_is_the_one_it_was(run, pretrained):
    model = run("run", *MODES["freeze"])
    before, after = state(pretrained), state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_adapters_change_linear_layers_and_nothing_else(run, pretrained):
    before, after = state(pretrained), state(run("run", *MODES["nf4"]))
    changed = {key for key in before if not key.startswith("activation") and not torch.equal(before[key], after[key])}
    weights = {key for key in changed if "activation_" not in key}
    assert weights == {
        f"blocks.0.{name}.weight" for name in ("attn.query", "attn.key", "attn.value", "attn.out", "mlp.0", "mlp.2")
    }


def test_ranges_follow_the_run(run):
    ranges = state(run("run", *MODES["min_max"]))["blocks.0.mlp.2.activation_max"]
    frozen = state(run("frozen", *MODES["min_max"], "--model.optimizer.lr", "0"))["blocks.0.mlp.2.activation_max"]
    assert ranges.isfinite().all()
    assert not torch.equal(ranges, frozen)


def test_the_seed_decides_everything(run):
    words = [*MODES["random"], "--model.augmentation", "ssql.augment.SpeechAugmentation"]
    first, second = run("a", *words), run("b", *words)
    assert all(torch.equal(state(first)[key], state(second)[key]) for key in state(first))
    third = run("c", *words, "--model.seed", "1")
    assert not torch.equal(state(first)["conv1.weight"], state(third)["conv1.weight"])


def interrupt(monkeypatch, step):
    finish = Finetuning.on_train_batch_end

    def interrupted(self, *args):
        finish(self, *args)
        if self.global_step == step:
            raise RuntimeError("interrupted")

    monkeypatch.setattr(Finetuning, "on_train_batch_end", interrupted)


# Three steps an epoch, checkpoints at 4 and 6: within an epoch and at the end of one.
@pytest.mark.parametrize(("mode", "step"), [("shift", 5), ("lsq", 7), ("random", 7), ("nf4", 5), ("8-bit", 7)])
def test_an_interrupted_run_goes_on_exactly(run, monkeypatch, mode, step):
    words = [*MODES[mode], "--patience", "5", "--model.augmentation", "ssql.augment.SpeechAugmentation"]
    whole = run("whole", *words)
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        with pytest.raises(RuntimeError, match="interrupted"):
            run("half", *words)
    resumed = run("half", *words, "--resume", "true")
    for name in ("model", "head"):
        first, second = state(whole, name), state(resumed, name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    results = [json.loads((model.parent / "results.json").read_text()) for model in (whole, resumed)]
    assert [row["value"] for row in results[0]] == [row["value"] for row in results[1]]
    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "test_on", lambda *args: (_ for _ in ()).throw(RuntimeError("too few items")))
        with pytest.raises(RuntimeError, match="too few items"):
            run("half", *words, "--resume", "true")  # a finished run gives the same model, of which the results tell
    assert json.loads((resumed.parent / "results.json").read_text()) == results[1]


def test_a_killed_process_goes_on_exactly(run, tmp_path, pretrained):
    words = ["--bit_width", "w4a4", "--trainer.max_epochs", "12"]
    whole = run("whole", *words)
    command = [sys.executable, "-m", "ssql.cli", "finetune", "--config", str(tmp_path / "config.yaml")]
    command += ["--encoder", str(pretrained), "--output", str(tmp_path / "killed"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    with pytest.raises(FileExistsError, match="holds an earlier run: go on with --resume true"):
        run("killed", *words)
    killed = run("killed", *words, "--resume", "true")
    assert all(torch.equal(state(whole)[key], state(killed)[key]) for key in state(whole))


def test_the_best_checkpoint_is_kept_and_a_run_without_progress_stops(run):
    model = run("run", "--trainer.max_epochs", "20", "--patience", "2", "--model.optimizer.lr", "0")
    checkpoints = sorted(path.name for path in (model.parent / "checkpoints").iterdir())
    assert "best-step=3.ckpt" in checkpoints  # the first of equals
    assert torch.load(model.parent / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] < 20


def test_from_scratch_and_from_a_folder_with_a_head(run):
    words = ["--encoder.width", "16", "--encoder.depth", "1", "--encoder.heads", "2"]
    scratch = run("scratch", *words, encoder="SpeechTransformer")
    head = load_head(scratch)
    on = run("on", "--trainer.max_epochs", "1", "--model.optimizer.lr", "0", encoder=scratch)
    assert torch.allclose(load_head(on).linear.weight, head.linear.weight, atol=1e-6)
    fresh = run("fresh", "--model.new_head", "true", "--model.optimizer.lr", "0", encoder=scratch)
    assert not torch.equal(load_head(fresh).linear.weight, head.linear.weight)


def test_few_labels(run):
    model = run("run", "--train_limit", "40", "--validation", "0.5")
    assert json.loads((model.parent / "results.json").read_text())[0]["train_items"] == 20


def test_numbers_in_their_units(run):
    data = ["--data", "SpokenProsody", "--data.languages", "[en-us]", "--data.train_size", "60", "--data.test_size"]
    model = run("run", *data, "20", "--data.batch_size", "16", "--task", "[pitch, energy]", *MODES["min_max"])
    rows = json.loads((model.parent / "results.json").read_text())
    assert [(row["task"], row["metric"], row["unit"]) for row in rows] == [
        ("pitch", "mae", "semitones"),
        ("pitch", "r2", ""),
        ("energy", "mae", "dB"),
        ("energy", "r2", ""),
    ]
    head = load_head(model)
    assert (head.task, head.classes, head.units) == ("regression", ["pitch", "energy"], ["semitones", "dB"])
    assert -40 < head.mean[1] < -20


def test_images(run, tmp_path):
    encoder = VisionEncoder("resnet10t", 1, model_arguments={"stem_width": 8, "channels": [8, 16, 24, 32]})
    save_encoder(encoder, tmp_path / "encoder")
    config = (tmp_path / "config.yaml").read_text().partition("data:")[0]
    (tmp_path / "config.yaml").write_text(config)
    words = ["--data", "Digits", "--task", "class", "--bit_width", "w4a4", "--train_limit", "300"]
    model = run("run", *words, encoder=tmp_path / "encoder")
    assert load_head(model).classes == [str(digit) for digit in range(10)]
    before, after = state(tmp_path / "encoder")["model.bn1.running_mean"], state(model)["model.bn1.running_mean"]
    assert not torch.equal(before, after)
    frozen = run("frozen", *words, "--freeze", "true", "--model.new_head", "true", encoder=model)
    assert torch.equal(state(frozen)["model.bn1.running_mean"], after)


TEXTS = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_epochs: 150, logger: false, accelerator: cpu}
task: text
encoder: {class_path: SpeechTransformer, init_args: {width: 32, depth: 1, heads: 2}}
model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}}
data:
  class_path: ssql.data.SpokenWords
  init_args: {languages: [de], train_size: 8, test_size: 8, batch_size: 4}
validation: 0.5
"""


def test_ctc_learns_four_clips_by_heart(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(TEXTS)
    words = ["--config", str(tmp_path / "config.yaml"), "--trainer.check_val_every_n_epoch", "150"]
    model = finetune([*words, "--output", str(tmp_path / "run"), "--bit_width", "w8a8"])
    encoder, head = load_encoder(model), load_head(model)
    assert head.task == "ctc"
    data = HeldOut(SpokenWords(languages=["de"], train_size=8, test_size=8, batch_size=4), 0.5)
    batch = next(iter(data.evaluation_dataloader("train")))
    with torch.no_grad(), quant.at(encoder, "w8a8"):
        features, lengths = encoder(*encoder.front_end(batch["inputs"], batch["lengths"]))
        assert head.answers(head(features), lengths) == batch["texts"]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["metric"] for row in rows] == ["wer", "cer"]


EXPORTED = [("lsq", "w4a4"), ("nf4", "w8a8")]


@pytest.mark.parametrize(("mode", "bit_width"), EXPORTED)
def test_an_exported_model_says_what_it_says_in_torch(run, tmp_path, mode, bit_width):
    model = run("run", *MODES[mode], "--trainer.max_epochs", "6", "--model.optimizer.lr", "0.01")
    encoder, head = load_encoder(model), load_head(model)
    path = to_file(encoder, tmp_path / "model.onnx", bit_width, head=head)
    session = open_session(path)
    data = SpokenWords(languages=["en-us"], train_size=1, test_size=400, batch_size=100)
    same, said = [], set()
    for batch in data.evaluation_dataloader("test"):
        log_mel, lengths = encoder.front_end(batch["inputs"], batch["lengths"])
        (logits,) = session.run(["logits"], {"log_mel": log_mel.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad(), quant.at(encoder, bit_width):
            expected = head(encoder.embed(log_mel, lengths)).argmax(dim=1).numpy()
        same += (logits.argmax(axis=1) == expected).tolist()
        said |= set(expected.tolist())
    assert len(said) > 3
    assert sum(same) / len(same) >= 0.995


@pytest.fixture
def run_here(tmp_path, monkeypatch, pretrained):
    """`ssql finetune` as the command line runs it: what it says when it stops."""
    (tmp_path / "config.yaml").write_text(CONFIG)

    def run(*words):
        start = ["--encoder", str(pretrained)] if "--encoder" not in words else []
        words = [
            "finetune",
            "--config",
            str(tmp_path / "config.yaml"),
            *start,
            "--output",
            str(tmp_path / "run"),
            *words,
        ]
        monkeypatch.setattr(sys, "argv", ["ssql", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "colour"], "unknown task 'colour'; the data has: word, language, voice, text"),
        (["--task", "[word, voice]"], "several tasks at once must all be numbers to predict (none)"),
        (["--bit_width", "w1a4"], "unknown bit-width 'w1a4'"),
        (["--quantizer", "lsq"], "quantizer lsq learns the steps of one bit-width, not of fp"),
        (["--bit_width", "random", "--quantizer", "lsq"], "not of random"),
        (["--bit_width", "w4a4", "--quantizer", "lsq", "--model.precision.test_at", "[w4a4, w8a8]"], "test_at w8a8"),
        (["--bit_width", "w4a4", "--model.adapters.base", "nf4"], "bit_width must be fp, not w4a4"),
        (["--freeze", "true", "--model.adapters.base", "nf4"], "choose one of them"),
        (["--freeze", "true", "--bit_width", "w4a4", "--quantizer", "lsq"], "a frozen encoder does not"),
        (["--data", "Digits", "--task", "class"], "encoder takes audio, the data is image"),
        (["--data.batch_size", "60"], "56 training items on 1 process(es) do not fill one batch of 60"),
        (["--validation", "0.999"], "leave none for training or for validation"),
        (["--encoder", "nowhere"], "no encoder at nowhere: no such folder"),
        (["--resume", "true"], "nothing to resume"),
    ],
)
def test_bad_input_is_one_line(run_here, arguments, message):
    said = run_here(*arguments)
    assert isinstance(said, str)
    assert said.startswith("ssql finetune: error:")
    assert message in said
    assert "\n" not in said


def test_a_frozen_encoder_without_ranges(run_here, tmp_path):
    save_encoder(SpeechTransformer(width=16, depth=1, heads=2), tmp_path / "bare")
    said = run_here("--encoder", str(tmp_path / "bare"), "--freeze", "true", "--bit_width", "w4a4")
    assert "layer 'conv2' has no activation range for w4a4: ssql quantize finds it" in said


def test_the_head_of_another_task_and_other_classes(run_here, run, tmp_path):
    model = run("word")
    said = run_here("--encoder", str(model), "--task", "language", "--data.languages", "[en-us, de]")
    assert "has a head whose label is word, the data gives language" in said
    said = run_here("--encoder", str(model), "--data.languages", "[en-us, de]")
    assert "has a head whose classes is ['en-us/zero', " in said


def test_steps_learned_at_another_bit_width(run_here, run):
    model = run("lsq", *MODES["lsq"])
    said = run_here("--encoder", str(model), "--bit_width", "w8a8")
    assert "the encoder's steps were learned at w4a4: fine-tune it with bit_width w4a4" in said


def test_a_clip_too_short_for_its_text(run_here, tmp_path):
    encoder = SpeechTransformer(width=16, depth=1, heads=2, pooling=2, adaptor_dim=16)
    save_encoder(encoder, tmp_path / "slow")
    said = run_here("--encoder", str(tmp_path / "slow"), "--task", "text", "--data.languages", "[de]")
    assert "is too short for its text" in said
    assert "12.5 Hz, the text needs" in said


def test_texts_need_frames(run_here, tmp_path):
    said = run_here("--data", "Digits", "--task", "text", "--encoder", "VisionEncoder")
    assert "unknown task 'text'; the data has: class" in said
