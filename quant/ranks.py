"""How many processes a run has; a single process is its own world."""

import torch.distributed as dist


def world_size() -> int:
    """Number of processes, 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
