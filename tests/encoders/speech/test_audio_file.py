import os
import time

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional as AF

from encoders.speech import resampling
from encoders.speech.audio_file import AudioFileError, examined, part_of, read_audio, read_blocks, read_part, read_whole
from encoders.speech.resampling import resampled, resampled_whole


def noise(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1).clip(-1, 1).astype(np.float32)


def written(path, samples: np.ndarray, rate: int):
    """An audio file; opus by its name too, and 16 bits where the format has them."""
    lossy = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".ogg": {}, ".mp3": {}}
    soundfile.write(path, samples, rate, **lossy.get(path.suffix, {"subtype": "PCM_16"}))
    return path


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_blocks_are_resampled_as_the_whole_is(rate):
    samples = noise(rate + 137)
    ends = np.sort(np.random.default_rng(1).integers(0, len(samples), 30))
    found = np.concatenate(list(resampled(np.split(samples, ends), rate)))
    expected = AF.resample(torch.from_numpy(samples), rate, 16_000).numpy()
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rate", "channels"), [("a.wav", 16_000, 1), ("a.flac", 44_100, 2), ("a.ogg", 8_000, 1)]
)
def test_a_file_comes_in_blocks_of_the_mean_of_its_channels(tmp_path, name, rate, channels):
    path = tmp_path / name
    samples = noise(3 * rate)
    soundfile.write(path, np.stack([samples, *[samples[::-1]] * (channels - 1)], axis=1), rate)
    blocks = list(read_blocks(path, seconds=0.5))
    assert len(blocks) >= 6
    assert max(map(len, blocks)) <= 16_000
    stored = torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1))
    assert np.allclose(np.concatenate(blocks), AF.resample(stored, rate, 16_000).numpy(), atol=1e-6)
    assert all(block.dtype == np.float32 for block in blocks)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav does not exist"):
        list(read_blocks(tmp_path / "nowhere.wav"))
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    with pytest.raises(ValueError, match=r"text\.wav is no audio file that libsndfile reads \(wav, flac"):
        list(read_blocks(text))
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16_000)
    with pytest.raises(ValueError, match=r"empty\.wav holds no sample"):
        list(read_blocks(empty))
    hollow = tmp_path / "hollow.wav"
    soundfile.write(hollow, np.append(noise(20_000), np.float32("nan")), 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"hollow\.wav has a sample that is NaN or infinite, after 1\.00 s"):
        list(read_blocks(hollow, seconds=1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.wav", r"a\.wav was cut off: its header promises 160000 bytes of samples, \d+ are there"),
        ("a.aiff", r"a\.aiff was cut off: its header promises 160008 bytes of samples, \d+ are there"),
        ("a.au", r"a\.au was cut off: its header promises 160000 bytes of samples, \d+ are there"),
        ("a.flac", r"a\.flac is damaged or was cut off after \d\.\d\d of 5\.00 s"),
        ("a.w64", r"a\.w64 was cut off: its header promises \d+ bytes of samples, \d+ are there"),
        ("a.voc", r"a\.voc was cut off: it ends before its header says"),
        ("a.ogg", r"a\.ogg was cut off: the last page of its Ogg stream ends in the middle"),
        ("a.opus", r"a\.opus was cut off: the last page of its Ogg stream ends in the middle"),
        ("a.mp3", r"a\.mp3 was cut off after 2\.\d\d of 5\.00 s"),
    ],
)
def test_a_file_that_was_cut_off_is_no_shorter_file(tmp_path, name, message):
    path = written(tmp_path / name, noise(80_000), 16_000)
    assert sum(map(len, read_blocks(path))) == 80_000
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=message):
        list(read_blocks(path, seconds=1))


def test_a_wav_whose_length_was_not_known_when_it_was_begun_is_read(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, noise(20_000), 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.find(b"data") + 4
    content[4:8] = content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert sum(map(len, read_blocks(path))) == 20_000


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 96_000, 767_000])
def test_weights_computed_where_they_are_needed_are_torchaudios(rate, monkeypatch):
    monkeypatch.setattr(resampling, "_LARGEST_KERNEL", 0)
    samples = noise(rate // 4 + 137)
    ends = np.sort(np.random.default_rng(1).integers(0, len(samples), 30))
    found = np.concatenate(list(resampled(np.split(samples, ends), rate)))
    expected = AF.resample(torch.from_numpy(samples).double(), rate, 16_000).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-7


@pytest.mark.parametrize("rate", [44_101, 15_999, 191_999, 1_001])
def test_an_odd_rate_is_resampled_as_any_other(rate):
    seconds, pitch = 0.5, 217.0
    samples = np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate).astype(np.float32)
    started = time.process_time()
    whole = resampled_whole(torch.from_numpy(samples), rate).numpy()
    assert time.process_time() - started < 2  # torchaudio's table takes 20 s and gigabytes
    blocks = np.concatenate(list(resampled(np.array_split(samples, 7), rate)))
    expected = np.sin(2 * np.pi * pitch * np.arange(len(whole)) / 16_000)
    middle = slice(400, -400)
    assert len(whole) == -(-len(samples) * 16_000 // rate)
    assert np.abs(whole - expected)[middle].max() < 0.01
    assert np.array_equal(blocks, whole)


def test_ordinary_rates_are_torchaudios_bit_by_bit():
    for rate in (8_000, 22_050, 44_100, 48_000):
        samples = torch.from_numpy(noise(rate // 3))
        assert torch.equal(resampled_whole(samples, rate), AF.resample(samples, rate, 16_000))


def test_a_whole_file_is_its_blocks(tmp_path):
    for name in ("a.wav", "a.flac", "a.ogg"):
        soundfile.write(tmp_path / name, np.stack([noise(250_000)] * 2, axis=1), 16_000)
        samples, sound = read_whole(tmp_path / name)
        assert (sound.rate, sound.samples, sound.length) == (16_000, 250_000, 250_000)
        assert examined(tmp_path / name) == sound
        assert np.array_equal(samples, soundfile.read(tmp_path / name, dtype="float32")[0][:, 0])


def with_rate(path, rate):
    soundfile.write(path, noise(1_000), 16_000)
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_a_rate_that_no_sound_has_is_a_damaged_header(tmp_path, rate):
    path = with_rate(tmp_path / "a.wav", rate)
    with pytest.raises(AudioFileError, match=rf"a\.wav says its rate is {rate:,} Hz: 1,000 to 768,000 Hz are read"):
        list(read_blocks(path))


def test_no_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to("nowhere")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name, kind in (
        ("pipe", "a named pipe"),
        ("folder", "a folder"),
        ("link", "a link to nothing"),
        ("zero", "a device"),
    ):
        with pytest.raises(AudioFileError, match=rf"{name}\.wav is {kind}, not an audio file"):
            list(read_blocks(tmp_path / f"{name}.wav"))


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1_000), 16_000)
    path = tmp_path / os.fsdecode(b"\xff.wav")
    os.rename(tmp_path / "a.wav", path)
    assert sum(map(len, read_blocks(path))) == 1_000
    path.write_bytes(b"no sound")
    with pytest.raises(AudioFileError, match=r"/\\xff\.wav is no audio file that libsndfile reads"):
        list(read_blocks(path))


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.ogg", "a.opus", "a.mp3"])
def test_a_part_of_a_file_is_the_cut_of_the_whole_bit_by_bit(tmp_path, name, rate):
    stereo = np.stack([noise(5 * rate), noise(5 * rate)[::-1]], axis=1)
    path = written(tmp_path / name, stereo, rate)
    whole = read_audio(path)
    samples, sound = read_whole(path)
    assert len(whole) == sound.length == 5 * 16_000
    for start, end in ((0, 16_000), (16_000, 48_000), (50_001, 60_002), (72_000, sound.length)):
        part = read_part(path, start, end)
        assert np.array_equal(part, part_of(samples, sound.rate, start, end))
        assert np.array_equal(part, whole[start:end])


@pytest.mark.parametrize("rate", [11_025, 44_101])
def test_at_odd_ratios_a_part_has_the_same_bits_from_memory_and_from_disk(tmp_path, rate):
    path = written(tmp_path / "a.wav", noise(3 * rate + 7), rate)
    samples, sound = read_whole(path)
    whole = read_audio(path)
    for start, end in ((0, sound.length), (12_345, 40_001), (40_000, sound.length)):
        part = read_part(path, start, end)
        assert np.array_equal(part, part_of(samples, rate, start, end))
        assert np.abs(part - whole[start:end]).max() < 1e-6


def test_an_mp3_in_blocks_is_the_mp3(tmp_path):
    """soundfile seeks after each block, by which the decoder of mp3 loses its state."""
    time = np.arange(30 * 16_000) / 16_000
    samples = 3 * noise(len(time)) * (np.sin(2 * np.pi * 1.3 * time) > 0.6) + 0.05 * np.sin(2 * np.pi * 220 * time)
    path = written(tmp_path / "a.mp3", samples.astype(np.float32), 16_000)
    whole = soundfile.read(path, dtype="float32")[0]
    for seconds in (0.5, 3.0):
        assert np.abs(np.concatenate(list(read_blocks(path, seconds))) - whole).max() < 1e-6


def test_a_silent_channel_beside_a_sounding_one_is_said(tmp_path, caplog):
    right = np.stack([np.zeros(16_000), noise(16_000)], axis=1).astype(np.float32)
    path = written(tmp_path / "right.wav", right, 16_000)
    assert np.allclose(np.concatenate(list(read_blocks(path))), right[:, 1] / 2, atol=1e-4)
    assert "right.wav: channel 0 is silent, of 2 counted from 0; the mean of all is taken" in caplog.text
    caplog.clear()
    for name, samples in (("both", right[:, [1, 1]]), ("none", 0 * right)):
        list(read_blocks(written(tmp_path / f"{name}.wav", samples, 16_000)))
    assert not caplog.text


def test_what_libsndfile_does_not_read_is_told_how_to_become_what_it_does(tmp_path):
    (tmp_path / "talk.m4a").write_bytes(b"\0\0\0 ftypM4A " + bytes(range(256)) * 4)
    with pytest.raises(AudioFileError, match=r"talk\.m4a is no audio .*: ffmpeg -i talk\.m4a talk\.flac") as error:
        examined(tmp_path / "talk.m4a")
    assert error.value.reason == ".m4a is no format that is read"


def test_a_file_that_became_shorter_is_named(tmp_path):
    path = written(tmp_path / "a.wav", noise(32_000), 16_000)
    sound = examined(path)
    written(path, noise(20_000), 16_000)
    with pytest.raises(AudioFileError, match=r"a\.wav is shorter than it was"):
        read_part(path, 16_000, sound.length)
