"""Changes of waveforms, against numpy."""

import math

import numpy as np
import torch

from ssql.augment.recordings import BEFORE_PEAK
from ssql.augment.waveforms import at_random_speed, behind_recordings, in_random_rooms, random_crop

RATE = 16_000


def batch(*lengths):
    """White noise, zero beyond each clip's length."""
    torch.manual_seed(0)
    lengths = torch.tensor(lengths)
    waveform = torch.randn(len(lengths), int(lengths.max())) / 10
    return waveform * (torch.arange(waveform.shape[1]) < lengths[:, None]), lengths


def test_crop_keeps_a_stretch_of_the_clip():
    waveform = torch.arange(1.0, 2_001).repeat(8, 1)
    cropped, lengths = random_crop(waveform, torch.full((8,), 2_000), 0.5)
    for clip, length in zip(cropped, lengths, strict=True):
        assert 1_000 <= length <= 2_000
        assert torch.equal(clip[:length], torch.arange(float(length)) + clip[0])
        assert (clip[length:] == 0).all()


def test_a_faster_clip_is_shorter_and_higher():
    tone = torch.sin(2 * math.pi * 1_000 / RATE * torch.arange(RATE)).repeat(64, 1)
    lengths = torch.full((64,), RATE)
    lengths[1::2] = 8_001
    tone = tone * (torch.arange(RATE) < lengths[:, None])
    heard, new = at_random_speed(tone, lengths, (0.9, 1.0, 1.15))
    assert heard.shape == (64, int(new.max()))
    found = set()
    for clip, before, length in zip(heard, lengths.tolist(), new.tolist(), strict=True):
        speed = next(speed for speed in (0.9, 1.0, 1.15) if length == math.ceil(round(100 * before / speed) / 100))
        spectrum = np.abs(np.fft.rfft(clip[:length].numpy() * np.hanning(length)))
        assert abs(spectrum.argmax() * RATE / length - 1_000 * speed) < 2
        assert (clip[length:] == 0).all()
        found.add(speed)
    assert found == {0.9, 1.0, 1.15}


def test_speed_does_not_change_with_the_batch_and_leaves_a_frame():
    waveform, lengths = batch(9_000, 4_000, 405)
    together, new = at_random_speed(waveform, lengths, (1.1,))
    assert new.tolist() == [math.ceil(9_000 / 1.1), math.ceil(4_000 / 1.1), 405]
    for row in range(3):
        alone, length = at_random_speed(waveform[row : row + 1, : lengths[row]], lengths[row : row + 1], (1.1,))
        assert length[0] == new[row]
        assert torch.allclose(alone[0], together[row, : new[row]], atol=1e-6)
    assert torch.equal(together[2, :405], waveform[2, :405])


def test_a_room_is_a_convolution_as_loud_as_before_and_without_delay():
    waveform, lengths = batch(*[5_000, 3_000] * 16)
    torch.manual_seed(1)
    room = torch.randn(BEFORE_PEAK + 2_000) * torch.exp(-torch.arange(BEFORE_PEAK + 2_000.0) / 300)
    room[:BEFORE_PEAK], room[BEFORE_PEAK] = 0, 4
    heard = in_random_rooms(waveform, lengths, [room])
    changed = 0
    for dry, wet, length in zip(waveform.numpy(), heard.numpy(), lengths.tolist(), strict=True):
        assert (wet[length:] == 0).all()
        if (wet == dry).all():
            continue
        changed += 1
        expected = np.convolve(dry[:length], room[BEFORE_PEAK:].numpy())[:length]
        expected *= np.linalg.norm(dry) / np.linalg.norm(expected)
        assert np.abs(wet[:length] - expected).max() < 1e-5
        assert np.correlate(wet[:length], dry[:length], "full").argmax() == length - 1
    assert 8 <= changed <= 24


def test_an_empty_room_changes_nothing_nor_does_silence_become_sound():
    waveform, lengths = batch(*[5_000] * 16)
    waveform[:4] = 0
    direct = torch.zeros(500)
    direct[BEFORE_PEAK] = 1
    assert torch.allclose(in_random_rooms(waveform, lengths, [direct]), waveform, atol=1e-6)


def test_noise_has_the_ratio_that_was_drawn_within_each_clip():
    waveform, lengths = batch(*[9_000, 700] * 50)
    noise = torch.randn(1_234).half()
    noisy = behind_recordings(waveform, lengths, [noise], (3.0, 12.0))
    ratios = []
    for clip, heard, length in zip(waveform.numpy(), noisy.numpy(), lengths.tolist(), strict=True):
        added = (heard - clip)[:length]
        if added.any():
            ratios.append(10 * np.log10(np.square(clip[:length]).sum() / np.square(added).sum()))
            start = np.argmax(np.correlate(np.tile(noise.float().numpy(), 3), added[:600], "valid")[:1_234])
            expected = np.resize(np.roll(noise.float().numpy(), -start), length)
            assert np.corrcoef(expected, added)[0, 1] > 0.999
    assert 30 <= len(ratios) <= 70
    assert 2.99 <= min(ratios) < 5 and 10 < max(ratios) <= 12.01


def test_silent_noise_and_silent_clips_stay_finite():
    waveform, lengths = batch(*[2_000] * 16)
    assert torch.equal(behind_recordings(waveform, lengths, [torch.zeros(300).half()], (0.0, 10.0)), waveform)
    silence = torch.zeros_like(waveform)
    assert torch.equal(behind_recordings(silence, lengths, [torch.randn(300).half()], (0.0, 10.0)), silence)
