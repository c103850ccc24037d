"""A distributed run of two ranks on this machine, for tests of what ranks join."""

import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work` with the rank, 0 or 1, and the folder, on both ranks of a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Forked: a spawned process imports torch again.
    mp.start_processes(_in_group, (port, work, folder), nprocs=2, start_method="fork")


def _in_group(rank: int, port: int, work: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()
