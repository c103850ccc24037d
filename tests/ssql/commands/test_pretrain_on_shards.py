"""`ssql pretrain` on shards: killed in the middle of an epoch it ends as if nothing had been, and as on the folder."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from written import SIMSIAM

CONFIG = (
    SIMSIAM
    + """
trainer: {max_steps: 30, enable_progress_bar: false, enable_model_summary: false, logger: false, accelerator: cpu}
data:
  class_path: AudioShards
  init_args: {root: shards, batch_seconds: 8, num_workers: 0}
checkpoint_steps: 2
calibration_batches: 1
bias_correction: []
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch, ssql):
    """Recordings, and shards of them; an epoch has more than ten batches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recordings").mkdir()
    draw = np.random.default_rng(0)
    for index in range(120):
        samples = 0.1 * draw.standard_normal(int(draw.integers(4_000, 16_000)))
        soundfile.write(tmp_path / "recordings" / f"{index:03d}.flac", samples, 16_000)
    (tmp_path / "config.yaml").write_text(CONFIG)
    ssql("pack", "--data.root", "recordings", "--output", "shards", "--shard_mb", 0.5)
    assert len(list((tmp_path / "shards").glob("*.tar"))) > 2
    return tmp_path


def weights(run):
    return safetensors.torch.load_file(run / "encoder" / "model.safetensors")


def same(one, two):
    one, two = weights(one), weights(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_killed_in_mid_epoch_and_one_on_the_folder_end_with_the_same_weights(folder, ssql):
    ssql("pretrain", "--config", "config.yaml", "--output", "whole")
    words = ["pretrain", "--config", "config.yaml", "--output", "killed"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssql.cli", *words, "--data.num_workers", "1"], stderr=subprocess.DEVNULL
    )
    last, deadline = folder / "killed" / "checkpoints" / "last.ckpt", time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    reached = torch.load(last, weights_only=True)
    assert 0 < reached["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] < 10
    assert 0 < reached["global_step"] < 30
    ssql(*words, "--resume", "true")
    assert same(folder / "whole", folder / "killed")
    ssql(
        "pretrain",
        "--config",
        "config.yaml",
        "--output",
        "folder",
        "--data",
        "AudioFolder",
        "--data.root",
        "recordings",
    )
    assert same(folder / "whole", folder / "folder")


@pytest.mark.filterwarnings("ignore")
def test_other_shards_are_not_gone_on_with(folder, ssql):
    ssql("pretrain", "--config", "config.yaml", "--output", "run", "--trainer.max_steps", 4)
    (folder / "shards" / "more").write_text("")
    with pytest.raises(SystemExit, match="data.init_args.root shards holds other files than when the run"):
        ssql("pretrain", "--config", "config.yaml", "--output", "run", "--trainer.max_steps", 4, "--resume", "true")
