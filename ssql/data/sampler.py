"""The order of training data: a function of seed and epoch, resumable in mid-epoch, clips of like length together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator
from torch.utils.data import Sampler

# Batches within which clips are sorted: enough for little padding, few enough that neighbours keep changing.
SORTED_BATCHES = 16


class ResumableSampler(Sampler[int]):
    """A permutation for each epoch; each rank takes its stride of it. Items that fill no whole batch are left out.

    Args:
        size: items of the data set.
        batch_size: items a batch, on each process.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        skip: batches this rank has already seen of the first epoch iterated.
        lengths: of each item; batches are then of items of like length, in random order, so that little is padding.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.batch_size, self.world_size = batch_size, world_size
        self.batches = size // (batch_size * world_size)
        self.size, self.seed, self.rank, self.skip, self.lengths = size, seed, rank, skip, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Items of a whole epoch for this rank: Lightning counts the batches done before a resume itself."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Indices of this epoch for this rank, past those already seen."""
        generator = Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(self.size, generator=generator)[: len(self) * self.world_size]
        if self.lengths is not None:
            lengths, batch = torch.tensor(self.lengths), self.batch_size * self.world_size
            groups = [group[lengths[group].argsort(stable=True)] for group in order.split(SORTED_BATCHES * batch)]
            batches = torch.cat(groups).view(self.batches, batch)
            order = batches[torch.randperm(self.batches, generator=generator)].flatten()
        mine = order[self.rank :: self.world_size].tolist()
        skip, self.skip = self.skip * self.batch_size, 0
        return iter(mine[skip:])
