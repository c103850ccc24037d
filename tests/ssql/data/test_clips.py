"""Clips in memory and on disk."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from ssql.data import AudioFolder
from ssql.data.clips import read_clips
from ssql.data.held_out import HeldOut
from ssql.data.layouts.entry import Entry

GIB = 2**30


@pytest.fixture
def talks(tmp_path):
    """Three files of one second at 16,000 Hz and one of two seconds at 8,000 Hz."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((4, 16_000)).astype(np.float32)
    for place, samples in enumerate(noise):
        soundfile.write(tmp_path / f"{place}.wav", samples, 16_000 if place < 3 else 8_000)
    return tmp_path


def test_clips_are_kept_as_far_as_they_fit(talks):
    data = AudioFolder(str(talks), labels=None, cache_gib=2.5 * 64_000 / GIB)
    held = data.dataset("train").inputs.held
    assert [clip is None for clip in held] == [False, False, True, True]
    data = AudioFolder(str(talks), labels=None, cache_gib=4.5 * 64_000 / GIB, max_seconds=0.5)
    held = data.dataset("train").inputs.held
    assert [clip is None for clip in held] == [False] * 6 + [True] * 4


def test_what_is_beyond_the_cache_is_never_in_memory_as_a_whole(tmp_path):
    noise = (0.1 * np.random.default_rng(0).standard_normal(16_000 * 300)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 16_000)
    data = AudioFolder(str(tmp_path), labels=None, cache_gib=0, max_seconds=2)
    tracemalloc.start()
    dataset = data.dataset("train")
    clip = dataset[100]["inputs"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset) == 150
    assert np.array_equal(clip.numpy(), soundfile.read(tmp_path / "long.wav", dtype="float32")[0][3_200_000:3_232_000])
    assert peak < noise.nbytes / 4


def test_batches_and_splits_are_the_same_from_disk(talks):
    def batches(cache_gib: float) -> list:
        data = AudioFolder(str(talks), labels=None, cache_gib=cache_gib, max_seconds=0.7, batch_size=2)
        held_out = HeldOut(data, share=0.5)
        return [*data.train_dataloader(), *held_out.train_dataloader(), *held_out.val_dataloader()]

    for kept, read in zip(batches(1), batches(0), strict=True):
        assert kept["inputs"].equal(read["inputs"])
        assert kept["lengths"].equal(read["lengths"])


def test_files_that_change_while_they_are_used_are_named(talks):
    dataset = AudioFolder(str(talks), labels=None, cache_gib=0).dataset("train")
    (talks / "1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.wav does not exist"):
        dataset[1]


def test_silent_channels_are_counted(talks, caplog):
    for name in ("left", "right"):
        stereo = np.zeros((16_000, 2), np.float32)
        stereo[:, int(name == "right")] = 0.1
        soundfile.write(talks / f"{name}.wav", stereo, 16_000)
    data = AudioFolder(str(talks), labels=None)
    assert len(data.dataset("train")) == 6
    assert "2 files hold silence on a channel beside sound" in caplog.text
    assert "softer: left.wav, right.wav" in caplog.text


def test_more_names_than_fit_are_counted(tmp_path, caplog):
    entries = [Entry(tmp_path / f"{place}.wav", f"{place}.wav") for place in range(14)]
    assert not read_clips(entries, 16_000, cut=True, cache_bytes=0)
    assert "skipped 14 files (out of reach: it is gone): 0.wav, 1.wav, 2.wav" in caplog.text
    assert "9.wav and 4 more" in caplog.text


def test_a_cache_below_nothing_is_refused():
    with pytest.raises(ValueError, match="cache_gib"):
        AudioFolder("recordings", cache_gib=-1)
