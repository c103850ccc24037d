"""The order of training data: a function of seed and epoch, resumable in mid-epoch."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ResumableSampler(Sampler[int]):
    """A permutation for each epoch; each rank takes its stride of it.

    Args:
        size: items of the data set.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        skip: items this rank has already seen of the first epoch iterated.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, world_size: int = 1, skip: int = 0) -> None:
        self.size, self.seed, self.rank, self.world_size, self.skip = size, seed, rank, world_size, skip
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Items of a whole epoch for this rank: Lightning counts the batches done before a resume itself."""
        return self.size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Indices of this epoch for this rank, past those already seen."""
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        mine = order[self.rank :: self.world_size][: len(self)]
        skip, self.skip = self.skip, 0
        return iter(mine[skip:])
