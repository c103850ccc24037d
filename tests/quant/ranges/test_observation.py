import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import quant


def ranges_of_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4)), quant.Policy(first_layer="w8"))
    passes = [torch.randn(8, 4) for _ in range(3)]
    found = {}
    for observer in ("min_max", "mse"):
        # Rank 0 has two of the three passes: ranks need not have as many.
        quant.calibrate(model, passes[:2] if rank == 0 else passes[2:], observer=observer)
        found[observer] = (model[0].activation_min.clone(), model[0].activation_max.clone())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_find_the_ranges_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Forked: a spawned process imports torch again.
    mp.start_processes(ranges_of_rank, (port, str(tmp_path)), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4)), quant.Policy(first_layer="w8"))
    passes = [torch.randn(8, 4) for _ in range(3)]
    for rank in (0, 1):
        for observer, (low, high) in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            quant.calibrate(model, passes, observer=observer)
            assert torch.equal(low, model[0].activation_min), observer
            assert torch.equal(high, model[0].activation_max), observer
