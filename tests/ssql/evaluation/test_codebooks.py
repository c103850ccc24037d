import pytest
import torch

from ssql.evaluation.codebooks import code_counts, perplexity, use


def test_counts_leave_padding_out():
    assert code_counts(torch.tensor([[0, 2, 2], [1, -1, -1]]), 4).tolist() == [1, 1, 2, 0]


def test_even_use_of_some_codes():
    counts = torch.tensor([5, 5, 0, 5, 5, 0, 0, 0])
    assert use(counts) == 50
    assert perplexity(counts) == pytest.approx(4)


def test_uneven_use_and_one_code():
    # Entropy of 3/4, 1/4: 0.5623 nats.
    assert perplexity(torch.tensor([3, 1])) == pytest.approx(1.7548, abs=1e-4)
    assert perplexity(torch.tensor([0, 7, 0])) == 1
