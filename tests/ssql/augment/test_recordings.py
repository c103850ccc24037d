import numpy as np
import soundfile
import torch

from ssql.augment import recordings
from ssql.augment.recordings import BEFORE_PEAK, read_noises, read_rooms

RATE = 16_000
DRAWN = np.random.default_rng(0)


def test_noises_have_a_peak_of_one_and_no_silence_around(tmp_path):
    samples = np.zeros(5_000)
    samples[1_000:3_000] = DRAWN.uniform(-0.25, 0.25, 2_000)
    samples[[1_000, 2_999]] = 0.25
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    (noise,) = read_noises(tmp_path)
    assert noise.shape == (2_000,) and noise.dtype == torch.float16
    assert np.abs(noise.float().numpy() - 4 * samples[1_000:3_000]).max() < 1e-3


def test_a_noise_of_a_few_samples_is_skipped_by_name(tmp_path, caplog):
    soundfile.write(tmp_path / "click.wav", [0.5], RATE)
    soundfile.write(tmp_path / "hiss.wav", DRAWN.uniform(-0.25, 0.25, 800), RATE)
    assert len(read_noises(tmp_path)) == 1
    assert "(shorter than one 25 ms frame): click.wav" in caplog.text
    assert len(read_rooms(tmp_path)) == 2


def test_the_direct_sound_of_a_room_is_where_it_is_looked_for(tmp_path):
    tail = np.exp(-np.arange(9_000) / 900) * DRAWN.uniform(-0.5, 0.5, 9_000)
    for name, delay in (("a", 0), ("b", 30), ("c", 4_000)):
        response = np.concatenate([0.001 * DRAWN.standard_normal(delay), [0.9], 0.9 * tail])
        soundfile.write(tmp_path / f"{name}.wav", response, RATE, "FLOAT")
    for room in read_rooms(tmp_path):
        assert room.abs().argmax() == BEFORE_PEAK and room[BEFORE_PEAK] == 1
        assert np.abs(room[BEFORE_PEAK + 1 :].numpy() - tail[: len(room) - BEFORE_PEAK - 1]).max() < 1e-6


def test_a_large_folder_is_kept_in_part_which_is_said_and_the_same_each_time(tmp_path, monkeypatch, caplog):
    for index in range(8):
        soundfile.write(tmp_path / f"{index}.wav", DRAWN.uniform(-0.5, 0.5, 2 * RATE), RATE)
    monkeypatch.setattr(recordings, "NOISE_SECONDS", 1.0)
    monkeypatch.setattr(recordings, "ALL_NOISES", 3.0)
    first, again = read_noises(tmp_path), read_noises(tmp_path)
    assert [len(noise) for noise in first] == [RATE] * 3
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert "noise: 3 of the 8 files in" in caplog.text
