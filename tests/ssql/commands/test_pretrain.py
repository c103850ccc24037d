"""The whole `ssql pretrain` as a user runs it: a real process, killed and resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import quant
from encoders import load_encoder
from ssql.cli import main
from ssql.methods import health

CONFIG = """
trainer: {{max_steps: {steps}, enable_progress_bar: false, enable_model_summary: false}}
model:
  class_path: SimSiam
  init_args:
    encoder:
      class_path: encoders.VisionEncoder
      init_args:
        model_name: resnet10t
        in_channels: 1
        model_arguments: {{stem_width: 8, channels: [8, 16, 24, 32]}}
    augmentation:
      class_path: ssql.augment.ImageAugmentation
      init_args: {{image_size: 8, flip: false, colour: false}}
    dim: 32
data: {{class_path: ssql.data.Digits, init_args: {{batch_size: 128}}}}
checkpoint_steps: 4
"""


def start(folder: Path, *arguments: str, steps: int = 40) -> subprocess.Popen[str]:
    config = folder.parent / "config.yaml"
    config.write_text(CONFIG.format(steps=steps))
    words = ["pretrain", "--config", str(config), "--output", str(folder), *arguments]
    command = [sys.executable, "-m", "ssql.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(folder: Path, *arguments: str, steps: int = 40) -> tuple[int, str]:
    process = start(folder, *arguments, steps=steps)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, output = run(folder)
    assert code == 0, output
    return folder


def test_killed_and_resumed_run_ends_with_the_same_weights(whole, tmp_path):
    process = start(tmp_path / "killed")
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "encoder").exists()
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 0 < reached < 40

    code, output = run(tmp_path / "killed", "--resume", "true")
    assert code == 0, output
    expected, found = (
        safetensors.torch.load_file(folder / "encoder" / "model.safetensors") for folder in (whole, tmp_path / "killed")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_run_leaves_logs_of_losses_bits_and_collapse_and_a_calibrated_encoder(whole):
    logs = whole / "logs" / "version_0"
    header = (logs / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "loss_fp", "loss_quantized", "weight_bits", "activation_bits", "feature_std"} <= set(header)
    assert list(logs.glob("events.out.tfevents*"))
    assert (logs / "config.yaml").exists()
    encoder = load_encoder(whole / "encoder")
    for bit_width in ("w8a8", "w4a8", "w2a2"):
        with quant.at(encoder, bit_width):  # one calibration serves them all
            pass


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """`ssql` in this process, which has torch loaded already: what it says when it stops, and what it printed."""

    def run(*words):
        (tmp_path / "config.yaml").write_text(CONFIG.format(steps=8))
        monkeypatch.setattr(sys, "argv", ["ssql", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.batch_size", "5000"], "do not fill one batch of 5000"),
        (["--data", "SpokenWords"], "SpokenWords gives audio, but the vision encoder takes image"),
        (["--resume", "true"], "nothing to resume"),
        (["--model.policy.layers", '{"nothing": "w8"}'], "'nothing' matches no layer"),
        (["--model.ssql.weight_bits", "[1, 8]"], "weight_bits must be two numbers from 2 to 8"),
        (["--model", "MoCo", "--model.queue_size", "64"], "queue_size 64 does not hold the 128 keys"),
        (["--model", "MaskedPrediction"], "masked prediction needs an encoder of frames"),
    ],
)
def test_bad_input_is_one_line(run_here, tmp_path, arguments, message):
    words = ["pretrain", "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run"), *arguments]
    said, _ = run_here(*words)  # a string, which Python prints before it leaves with code 1
    assert said.startswith("ssql pretrain: error:")
    assert message in said
    assert "\n" not in said


@pytest.mark.filterwarnings("ignore")
def test_a_collapse_stops_the_command_and_leaves_no_encoder(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "COLLAPSED_STD", 100.0)
    monkeypatch.setattr(health, "PATIENCE", 5)
    said, _ = run_here("pretrain", "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run"))
    assert said.startswith("ssql pretrain: error: the embeddings have collapsed: feature_std is")
    assert not (tmp_path / "run" / "encoder").exists()
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_help_is_there_without_loading_torch():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ssql.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "pretrain" in done.stdout
    assert "| torch\n" not in done.stderr, time.monotonic() - started


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", sorted(Path("experiments").rglob("*.yaml")), ids=str)
def test_every_shipped_configuration_is_read(run_here, config):
    commands = ("evaluate_tokenizer", "tokenizer", "evaluate", "finetune", "suite")
    command = next((word for word in commands if word in config.stem), "pretrain")
    code, printed = run_here(command, "--config", str(config), "--output", "runs/x", "--print_config")
    assert code == 0, printed.err
    assert ("bit_widths:" if command == "suite" else "class_path:") in printed.out
