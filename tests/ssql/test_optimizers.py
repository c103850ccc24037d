"""`ssql pretrain` with optimizers by name, in this process: a run of a few steps, and its resuming."""

import pytest
import safetensors.torch
import torch

from ssql.commands.pretrain import pretrain
from ssql.methods import MoCo

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Lightning and bitsandbytes; runs have them on stderr

CONFIG = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_steps: 4, logger: false, accelerator: cpu}
model:
  class_path: MoCo
  init_args:
    encoder:
      class_path: encoders.VisionEncoder
      init_args:
        model_name: resnet10t
        in_channels: 1
        model_arguments: {stem_width: 8, channels: [8, 16, 24, 32]}
    augmentation:
      class_path: ssql.augment.ImageAugmentation
      init_args: {image_size: 8, flip: false, colour: false}
    queue_size: 128
data: {class_path: ssql.data.Digits, init_args: {batch_size: 64}}
checkpoint_steps: 2
calibration_batches: 1
"""
NAMES = [
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "timm.optim.Lars",
    "bitsandbytes.optim.AdamW8bit",
    "bitsandbytes.optim.Lion8bit",
]


@pytest.fixture
def run(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    def run(folder, *arguments):
        return pretrain(["--config", str(config), "--output", str(tmp_path / folder), *arguments])

    return run


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_by_its_name_takes_steps(run, name):
    encoder = run("run", "--model.optimizer", name, "--model.optimizer.lr", "0.01")
    checkpoint = torch.load(encoder.parent / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["optimizer_states"][0]["state"]


def test_learning_rate_of_the_default_optimizer_from_the_command_line(run):
    encoder = run("run", "--model.optimizer.lr", "0.123")
    checkpoint = torch.load(encoder.parent / "checkpoints" / "last.ckpt", weights_only=True)
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.123
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def test_a_run_with_8_bit_optimizer_state_goes_on_exactly(run, monkeypatch, tmp_path):
    words = ["--model.optimizer", "bitsandbytes.optim.AdamW8bit", "--model.optimizer.min_8bit_size", "64"]
    whole = run("whole", *words)
    with monkeypatch.context() as patch:
        patch.setattr(MoCo, "after_step", interrupt_at(3))
        with pytest.raises(RuntimeError, match="interrupted"):
            run("half", *words)
    checkpoint = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert any(value.dtype == torch.uint8 for value in tensors(checkpoint["optimizer_states"][0]["state"]))
    resumed = run("half", *words, "--resume", "true")
    first, second = (safetensors.torch.load_file(path / "model.safetensors") for path in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def interrupt_at(step):
    after_step = MoCo.after_step

    def interrupted(self, targets):
        after_step(self, targets)
        if self.global_step == step:
            raise RuntimeError("interrupted")

    return interrupted


def tensors(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value
