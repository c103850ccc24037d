from pathlib import Path

import pytest
import torch
from torch import nn
from two_ranks import on_two_ranks

import quant


def ranges_of_rank(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4)), quant.Policy(first_layer="w8"))
    passes = [torch.randn(8, 4) for _ in range(3)]
    found = {}
    for observer in ("min_max", "mse"):
        # Rank 0 has two of the three passes: ranks need not have as many.
        quant.calibrate(model, passes[:2] if rank == 0 else passes[2:], observer=observer)
        found[observer] = (model[0].activation_min.clone(), model[0].activation_max.clone())
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_find_the_ranges_of_one(tmp_path):
    on_two_ranks(ranges_of_rank, tmp_path)
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4)), quant.Policy(first_layer="w8"))
    passes = [torch.randn(8, 4) for _ in range(3)]
    for rank in (0, 1):
        for observer, (low, high) in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            quant.calibrate(model, passes, observer=observer)
            assert torch.equal(low, model[0].activation_min), observer
            assert torch.equal(high, model[0].activation_max), observer
