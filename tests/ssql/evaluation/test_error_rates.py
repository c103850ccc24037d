import itertools

import numpy as np
import pytest

from ssql.evaluation.error_rates import edits


def by_trying(said, read) -> tuple[int, int]:
    """Fewest edits, and of those ways the fewest insertions, by going all ways."""
    if not said or not read:
        return len(said) + len(read), len(read)
    same = by_trying(said[1:], read[1:])
    ways = [(same[0] + (said[0] != read[0]), same[1])]
    left_out, put_in = by_trying(said[1:], read), by_trying(said, read[1:])
    return min(ways + [(left_out[0] + 1, left_out[1]), (put_in[0] + 1, put_in[1] + 1)])


def test_edits_are_the_fewest_and_of_them_those_with_the_fewest_insertions():
    words = [list(word) for length in range(4) for word in itertools.product("ab", repeat=length)]
    for said, read in itertools.product(words, words):
        found = edits(said, read)
        assert (found.wrong, found.inserted) == by_trying(said, read)
        assert found.length == len(said)


def test_error_rates_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="an independent reference, which the toolkit does without")
    random = np.random.default_rng(0)
    for _ in range(50):
        said, read = (" ".join(random.choice(list("abcde"), random.integers(1, 12))) for _ in range(2))
        found = edits(said.split(), read.split())
        assert found.wrong / found.length == pytest.approx(jiwer.wer(said, read))
        assert edits(said, read).wrong / len(said) == pytest.approx(jiwer.cer(said, read))
        assert found.inserted <= jiwer.process_words(said, read).insertions
