"""Batches of all processes of a distributed run; a single process is its own world."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quant.ranks import world_size


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gathered(values: Tensor) -> Tensor:
    """Rows of all processes in the order of ranks, with gradient: (batch, ...) to (world size * batch, ...).

    The gradient of a row is the sum of what all processes have to say about it, so that losses of each process's
    own rows, averaged over processes as DDP averages, have the gradient of the loss of the whole batch.
    """
    result: Tensor = _Gather.apply(values) if world_size() > 1 else values
    return result


@torch.no_grad()
def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over the processes, the same on all of them; not a number if it is so on one."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
