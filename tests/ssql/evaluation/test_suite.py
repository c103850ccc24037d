import pytest

from ssql.data import Noisy, SpokenProsody
from ssql.evaluation.suite import speech_suite


def test_parts_that_are_not_there_are_named(tmp_path):
    (tmp_path / "recordings").mkdir()
    recordings = {"fsdd": str(tmp_path / "recordings"), "prompts": str(tmp_path / "none")}
    parts, skipped = speech_suite(recordings=recordings, seed=3)
    assert list(parts) == ["words", "prosody", "fsdd"]
    assert skipped == [f"prompts (real recordings) skipped: {tmp_path / 'none'} does not exist"]
    assert isinstance(parts["prosody"], SpokenProsody)
    assert isinstance(parts["words"], Noisy)
    assert (parts["words"].data.seed, parts["words"].noise_seed, parts["prosody"].seed) == (3, 3, 3)


def test_recordings_the_suite_does_not_know_are_errors():
    for arguments in ({"recordings": {"timit": "data"}}, {"parts": ["words", "timit"]}):
        with pytest.raises(ValueError, match=r"unknown parts \['timit'\]: the suite has words, prosody, fsdd, prompts"):
            speech_suite(**arguments)


def test_parts_can_be_chosen():
    assert list(speech_suite(["prosody"])[0]) == ["prosody"]
