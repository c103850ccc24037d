import pytest
import torch

from encoders import deinterleave, interleave


def test_two_linguistic_tokens_then_three_semantic_ones():
    linguistic, semantic = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 5, 6, 7, 8, 9])
    assert interleave(linguistic, semantic, 1024).tolist() == [1, 2, 1024, 1029, 1030, 3, 4, 1031, 1032, 1033]


@pytest.mark.parametrize(("linguistic", "semantic", "groups"), [(4, 6, 2), (5, 7, 2), (3, 6, 1), (4, 5, 1), (1, 9, 0)])
def test_a_last_group_that_is_not_whole_is_dropped_and_the_rest_comes_back(linguistic, semantic, groups):
    streams = torch.randint(0, 64, (linguistic,)), torch.randint(0, 128, (semantic,))
    sequence = interleave(*streams, 64)
    assert len(sequence) == 5 * groups
    again = deinterleave(sequence, 64)
    assert torch.equal(again[0], streams[0][: 2 * groups])
    assert torch.equal(again[1], streams[1][: 3 * groups])


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([1, 2, 64, 65], "4 tokens is not of whole groups of 5"),
        ([1, 64, 65, 66, 67], "2 tokens from 0 to 63, then 3 from 64 on"),
        ([1, 2, 3, 66, 67], "2 tokens from 0 to 63, then 3 from 64 on"),
        ([-1, 2, 64, 66, 67], "2 tokens from 0 to 63, then 3 from 64 on"),
    ],
)
def test_sequences_that_are_none(sequence, message):
    with pytest.raises(ValueError, match=message):
        deinterleave(torch.tensor(sequence), 64)
