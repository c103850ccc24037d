"""Views of speech; with recordings, as `ssql pretrain` takes them."""

import logging
import os
import sys

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from encoders import SpeechTransformer
from ssql import cli
from ssql.augment import SpeechAugmentation
from ssql.methods import Method

RATE = 16_000
DRAWN = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Clips, noises of several kinds of file, and rooms."""
    home = tmp_path_factory.mktemp("recordings")
    for index in range(24):
        write(home / "clips" / f"{index}.wav", DRAWN.standard_normal(6_000 + 300 * index) / 10, RATE)
    for index, (suffix, rate) in enumerate((("wav", 8_000), ("flac", 44_100), ("ogg", RATE))):
        write(home / "noise" / suffix / f"{index}.{suffix}", DRAWN.standard_normal(rate // 2) / 10, rate)
    for index in range(3):
        write(home / "rooms" / f"{index}.wav", DRAWN.standard_normal(3_000) * np.exp(-np.arange(3_000) / 400) / 9, RATE)
    return home


def write(path, samples, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    waveform, lengths = torch.randn(4, 16_000) * 0.1, torch.tensor([16_000, 12_000, 5_000, 400])
    return waveform * (torch.arange(16_000) < lengths[:, None]), lengths


def test_speech_views_differ_are_finite_and_repeat_with_the_seed():
    waveform, lengths = clips()
    encoder, augmentation = SpeechTransformer(width=32, depth=1, heads=2), SpeechAugmentation()
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(augmentation(waveform, lengths, encoder))
    assert torch.equal(views[0][0], views[1][0])
    assert views[0][0].shape != views[2][0].shape or not torch.equal(views[0][0], views[2][0])
    for log_mel, frames in views:
        assert log_mel.isfinite().all()
        assert log_mel.shape[:2] == (4, 80)
        assert (frames >= 2).all()
        assert frames.max() <= log_mel.shape[2]


def test_views_with_recordings_repeat_with_the_seed_and_are_others_than_without(folders):
    waveform, lengths = clips()
    encoder = SpeechTransformer(width=32, depth=1, heads=2)
    options = {"noise": str(folders / "noise"), "rooms": str(folders / "rooms"), "speeds": [0.9, 1, 1.1]}
    seen = []
    for chosen in ({}, *({name: value} for name, value in options.items()), options):
        augmentation = SpeechAugmentation(**chosen)
        for seed in range(8):
            views = []
            for _ in range(2):
                torch.manual_seed(seed)
                views.append(augmentation(waveform, lengths, encoder))
            assert torch.equal(views[0][0], views[1][0])
            assert views[0][0].isfinite().all()
            assert (views[0][1] >= 2).all()
        seen.append(views[0][0])
    assert len({view.double().sum().item() for view in seen}) == len(seen)


CONFIG = """
trainer: {{enable_progress_bar: false, enable_model_summary: false, accelerator: cpu, max_steps: 6, logger: false}}
model:
  class_path: SimSiam
  init_args:
    encoder: {{class_path: encoders.SpeechTransformer, init_args: {{width: 16, depth: 1, heads: 2}}}}
    augmentation:
      class_path: SpeechAugmentation
      init_args: {{noise: {home}/noise, noise_snr_db: [0, 15], rooms: {home}/rooms, speeds: [0.9, 1.0, 1.1]}}
    dim: 16
data: {{class_path: AudioFolder, init_args: {{root: {home}/clips, labels: null, batch_size: 8}}}}
calibration_batches: 1
bias_correction: []
checkpoint_steps: 2
"""


@pytest.fixture
def pretrain(folders, tmp_path, monkeypatch, capsys):
    """`ssql pretrain` on the recordings: None where it ended well, else what it said."""

    def run(*words):
        (tmp_path / "config.yaml").write_text(CONFIG.format(home=folders), encoding="utf-8")
        words = ["pretrain", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", *words]
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        try:
            return cli.main()
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, str) else capsys.readouterr().err

    return run


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_with_recordings_ends_with_the_weights_of_an_unbroken_one(pretrain, tmp_path, monkeypatch):
    assert pretrain("--output", tmp_path / "whole") is None
    step = Method.training_step

    def broken(self, batch, place):
        if self.global_step == 5:
            raise RuntimeError("the power is off")
        return step(self, batch, place)

    monkeypatch.setattr(Method, "training_step", broken)
    assert pretrain("--output", tmp_path / "half") is not None
    assert not (tmp_path / "half" / "encoder").exists()
    monkeypatch.setattr(Method, "training_step", step)
    assert pretrain("--output", tmp_path / "half", "--resume", "true") is None
    whole, half = (
        safetensors.torch.load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("whole", "half")
    )
    assert whole.keys() == half.keys()
    assert all(torch.equal(whole[key], half[key]) for key in whole)
    other = safetensors_of(pretrain, tmp_path, "--model.augmentation.noise_snr_db", "[-5, 0]")
    assert not all(torch.equal(whole[key], other[key]) for key in whole)


def safetensors_of(pretrain, tmp_path, *words):
    assert pretrain("--output", tmp_path / "other", *words) is None
    return safetensors.torch.load_file(tmp_path / "other" / "encoder" / "model.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["noise", "nowhere"], "noise nowhere is no folder: give one of audio files"),
        (["rooms", "HOME/empty"], "rooms: there is no audio file in HOME/empty"),
        (["noise", "HOME/texts"], "noise: none of the 2 files in HOME/texts is a recording that can be used"),
        (["noise_snr_db", "[20, 5]"], "noise_snr_db must be two numbers, the lower first, got [20"),
        (["noise_snr_db", "[5]"], "noise_snr_db must be two numbers, the lower first, got [5"),
        (["speeds", "[0, 1]"], "speeds must be from 0.5 to 2, in whole hundredths, got [0"),
        (["speeds", "[1.005]"], "speeds must be from 0.5 to 2, in whole hundredths, got [1.005]"),
        (["speeds", "[]"], "speeds must be from 0.5 to 2, in whole hundredths, got []"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_step(pretrain, tmp_path, monkeypatch, words, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.wav"):
        (tmp_path / "texts" / name).write_text("no sound")
    monkeypatch.setattr(Method, "training_step", lambda *args: pytest.fail("it trained"))
    option, value = words
    said = pretrain(f"--model.augmentation.{option}", value.replace("HOME", str(tmp_path)))
    assert said.startswith("ssql pretrain: error:") and sentence.replace("HOME", str(tmp_path)) in said
    assert "Traceback" not in said


@pytest.mark.filterwarnings("ignore")
def test_recordings_that_cannot_be_read_are_counted_and_named(pretrain, folders, tmp_path, caplog):
    odd = tmp_path / "odd"
    write(odd / "good.wav", DRAWN.standard_normal(4_000) / 10, RATE)
    write(odd / "silent.wav", np.zeros(4_000), RATE)
    soundfile.write(odd / "nan.wav", np.full(4_000, np.nan), RATE, "FLOAT")
    whole = (odd / "good.wav").read_bytes()
    (odd / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (odd / "README.txt").write_text("about the recordings")
    (odd / "gone.wav").symlink_to("nowhere")
    os.mkfifo(odd / "pipe.wav")
    (odd / "linked").symlink_to(folders / "noise", target_is_directory=True)
    (odd / "round").symlink_to(odd, target_is_directory=True)
    (odd / ".hidden").write_text("of a program")
    with caplog.at_level(logging.INFO):
        assert pretrain("--model.augmentation.noise", odd) is None
    for line in (
        "(all silent): silent.wav",
        "(not finite): nan.wav",
        "(cut off): cut.wav",
        "(unreadable): README.txt",
        "(a link to nothing): gone.wav",
        "(a named pipe): pipe.wav",
        "(a link to a folder around it): round",
        "noise: 4 recordings of",
    ):
        assert line in caplog.text
    assert ".hidden" not in caplog.text
