"""A distributed run of two ranks on this machine, for tests of what ranks join."""

import inspect
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work`, a function of a module of tests, with the rank, 0 or 1, and the folder, on both ranks of a group.

    In a process of its own: one that the runner forks, with the threads of its runtimes, may take the runner down.
    """
    found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, __file__, inspect.getfile(work), work.__name__, folder]
    ran = subprocess.run(words, env=os.environ | found, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def _both(module: str, work: str, folder: str) -> None:
    called = runpy.run_path(module)[work]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Forked: a spawned process imports torch again.
    mp.start_processes(_in_group, (port, called, Path(folder)), nprocs=2, start_method="fork")


def _in_group(rank: int, port: int, work: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    work(rank, folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    _both(*sys.argv[1:])
