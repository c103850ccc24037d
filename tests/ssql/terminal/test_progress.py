import itertools
import logging
from types import SimpleNamespace

import pytest

from ssql.data import SpokenProsody, SpokenWords
from ssql.terminal import progress
from ssql.terminal.progress import track


@pytest.fixture
def lines(caplog, monkeypatch):
    """What the log says; each look at the clock finds that a second has passed."""
    caplog.set_level(logging.INFO)
    seconds = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_comes_soon_and_then_now_and_then(lines):
    assert list(track(range(70), "reading", 70)) == list(range(70))
    assert lines() == [
        "reading: 3 of 70, 0:01:07 left",
        "reading: 33 of 70, 0:00:37 left",
        "reading: 63 of 70, 0:00:07 left",
    ]


def test_short_work_says_nothing_and_an_unknown_end_is_not_told(lines):
    assert list(track("ab", "reading", 2)) == ["a", "b"]
    assert lines() == []
    assert list(track("abcd", "reading")) == list("abcd")
    assert lines() == ["reading: 3"]


def test_spoken_data_say_that_they_begin_and_how_far_they_are(lines):
    SpokenWords(languages=["de"], train_size=4, test_size=1).setup()
    assert lines()[:2] == ["speaking 5 words", "speaking words of train: 3 of 4, 0:00:01 left"]
    SpokenProsody(languages=["de"], train_size=2, test_size=1).setup()
    assert lines()[-2:] == ["speaking 3 clips", "speaking words of train: 3 of 6, 0:00:03 left"]
