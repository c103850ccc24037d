import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import quant
from quant.observation import subsample


def test_subsample_is_even_deterministic_and_visits_every_channel():
    values = torch.arange(144).repeat(64 * 50, 1).view(64, 50, 144).float()
    picked = subsample(values, None, 4096)
    assert picked.shape == (4096,)
    assert torch.equal(picked, subsample(values, None, 4096))
    assert picked.long().bincount(minlength=144).min() >= 28


def test_subsample_takes_all_of_a_small_tensor_and_follows_the_memory_layout():
    values = torch.randn(2, 3, 4, 5)
    assert torch.equal(subsample(values, None, 1000), values.flatten())
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(subsample(last, None, 1000), values.permute(0, 2, 3, 1).flatten())
    assert subsample(torch.tensor(3.0), None, 4).tolist() == [3.0]


def test_subsample_marks_padding():
    values = torch.arange(12.0).view(2, 3, 2)
    valid = torch.tensor([[True, True, True], [True, False, False]]).view(2, 3, 1)
    picked = subsample(values.transpose(1, 2), valid.transpose(1, 2), 100)
    assert picked[:8].tolist() == list(range(8))
    assert picked[8:].isnan().all()


def ranges_of_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4)), quant.Policy(first_layer="w8"))
    passes = [torch.randn(8, 4) for _ in range(3)]
    found = {}
    for observer in ("min_max", "percentile", "mse"):
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
