import math
import random

import numpy as np
import pytest
import torch

from ssql.data import SpokenProsody
from ssql.data.espeak import Utterance, fundamental_frequency, synthesize
from ssql.data.prosody import CONTOURS, VOICES, draw_clip


def measured_f0(waveform: torch.Tensor, near: float) -> float:
    """Median F0 in Hz of the voiced frames, within a fifth of `near`: the highest peak of the autocorrelation of each
    frame, its taper taken out (Boersma 1993)."""
    window = np.hanning(1024)
    taper = np.fft.irfft(np.abs(np.fft.rfft(window, 4096)) ** 2)[:1024]
    found = []
    for frame in waveform.double().numpy()[: len(waveform) // 1024 * 1024].reshape(-1, 1024):
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frame * window, 4096)) ** 2)[:1024] / taper.clip(1e-9)
        first = int(16_000 / near / 1.2)
        lag = first + int(np.argmax(correlation[first : int(16_000 / near * 1.2)]))
        if correlation[lag] > 0.6 * correlation[0]:
            before, here, after = correlation[lag - 1 : lag + 2]
            found.append(16_000 / (lag + 0.5 * (before - after) / (before - 2 * here + after)))
    return float(np.median(found))


def test_f0_of_every_voice_is_what_espeak_makes():
    voices = [voice for split in VOICES.values() for names in split.values() for voice in names]
    spoken = [
        Utterance("seven nine one", f"en-us+{voice}", pitch, 0, 130) for voice in voices for pitch in (20, 45, 75)
    ]
    for utterance, waveform in zip(spoken, synthesize(spoken), strict=True):
        expected = fundamental_frequency(utterance.voice, utterance.pitch)
        assert measured_f0(waveform, expected) == pytest.approx(expected, rel=0.012), utterance


def test_labels_are_what_is_heard():
    data = SpokenProsody(train_size=4, test_size=40)
    assert data.tasks == ["contour", "gender", "pitch", "energy", "rate"]
    clips = [data.dataset("test")[index] for index in range(40)]
    for clip in clips:
        energy = 20 * clip["inputs"].square().mean().sqrt().log10()
        assert float(energy) == pytest.approx(clip["labels"]["energy"], abs=1e-4)
        assert clip["inputs"].abs().max() < 1
    flat = [clip for clip in clips if data.classes["contour"][clip["labels"]["contour"]] == "flat"]
    assert len(flat) > 3
    for clip in flat:
        expected = 100 * 2 ** (clip["labels"]["pitch"] / 12)
        assert measured_f0(clip["inputs"], expected) == pytest.approx(expected, rel=0.015)
    by_rate = sorted(clips, key=lambda clip: clip["labels"]["rate"])
    slow, fast = (sum(len(clip["inputs"]) for clip in half) for half in (by_rate[:20], by_rate[20:]))
    assert slow > 1.4 * fast


def test_contours_move_about_their_mean_and_voices_of_the_test_are_new():
    assert all(sum(steps) == pytest.approx(0) for steps in CONTOURS.values())
    heard, unheard = (set(sum(VOICES[split].values(), ())) for split in ("train", "test"))
    assert not heard & unheard
    rising = list(CONTOURS).index("rising")
    drawn = [draw_clip(random.Random(seed), ["fr"], VOICES["test"]) for seed in range(30)]
    spoken, answers = next(clip for clip in drawn if clip[1]["contour"] == rising)
    first, second, third = (fundamental_frequency(word.voice, word.pitch) for word in spoken)
    assert first < second < third
    assert answers["pitch"] == pytest.approx(12 * math.log2((first * second * third) ** (1 / 3) / 100))


def test_the_same_seed_gives_the_same_clips():
    first, second = (SpokenProsody(train_size=3, test_size=1).dataset("train")[2] for _ in range(2))
    assert torch.equal(first["inputs"], second["inputs"])
    assert first["labels"] == second["labels"]
    other = SpokenProsody(train_size=3, test_size=1, seed=1).dataset("train")[2]
    assert first["labels"] != other["labels"]


def test_voices_whose_f0_is_unknown_are_errors():
    with pytest.raises(ValueError, match=r"languages \['pl'\]: F0 is known for en-us, de, fr, es only"):
        SpokenProsody(languages=["pl"])
    with pytest.raises(ValueError, match="no voice variant 'zzq'; variants are like m1, f2"):
        fundamental_frequency("en-us+zzq", 50)
