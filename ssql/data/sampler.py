"""The order of training data: a function of seed and epoch, resumable in mid-epoch, clips of like length together.

`ResumableSampler` gives batches of so many items, `BatchesBySeconds` batches of so much sound.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from encoders.speech.log_mel import SAMPLE_RATE

# Batches within which clips are sorted: enough for little padding, few enough that neighbours keep changing.
SORTED_BATCHES = 16
LIKE = 1.1  # the longest clip of a batch by seconds, over the shortest


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
        yield from mine[skip:]


class BatchesBySeconds(Sampler[list[int]]):
    """Batches of clips that differ in length by a tenth and hold, padding included, up to so many seconds.

    An epoch is a function of seed and epoch, has the same number of batches as every other, and the processes have
    batches of like length at a time and as many clips in them. Each clip comes once; only where their number is no
    multiple of the processes are some left out, fewer than there are processes and others in each epoch. Two batches
    of an epoch may be half empty.

    Args:
        lengths: samples of each clip.
        samples: of a batch on each process: clips times the longest of them.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        skip: batches this rank has already seen of the first epoch iterated.

    Raises:
        ValueError: a batch does not hold two of the longest clips, or there is not one clip for each process.
    """

    def __init__(
        self, lengths: Sequence[int], samples: int, seed: int, rank: int = 0, world_size: int = 1, skip: int = 0
    ) -> None:
        every = torch.as_tensor(lengths)
        longest = int(every.max())
        if samples < 2 * longest:
            raise ValueError(
                f"batch_seconds {samples / SAMPLE_RATE:g} does not hold two clips of {longest / SAMPLE_RATE:g} s, the "
                "longest: raise it or lower max_seconds"
            )
        if len(every) < world_size:
            raise ValueError(f"{len(every)} training clips are fewer than {world_size} processes: add data")
        self.seed, self.rank, self.world_size, self.skip = seed, rank, world_size, skip
        self.epoch = 0
        self.sampler = self  # where Lightning looks for `set_epoch`
        # Clips of a bucket, and how many of them are the batches of all processes at a time; short ones first.
        self.buckets: list[tuple[Tensor, int]] = []
        kinds = (every.clamp(min=1).log() / math.log(LIKE)).floor()
        for kind in kinds.unique().tolist():
            clips = (kinds == kind).nonzero().flatten()
            self.buckets.append((clips, world_size * (samples // int(every[clips].max()))))
        self.batches = len(self._drawn(Generator().manual_seed(0)))

    @property
    def largest(self) -> int:
        """The most clips that a batch of one process may have."""
        return max(size for _, size in self.buckets) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch for this rank."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of indices of this epoch for this rank, past those already seen."""
        generator = Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        drawn = self._drawn(generator)
        order = torch.randperm(len(drawn), generator=generator).tolist()
        # Here, in a generator: torch's loader with workers makes an iterator for nothing.
        skip, self.skip = self.skip, 0
        for place in order[skip:]:
            yield drawn[place][self.rank :: self.world_size].tolist()

    def _drawn(self, generator: Generator) -> list[Tensor]:
        """The clips of all processes at a time; what fills no batch of its bucket goes on to the next longer one."""
        drawn: list[Tensor] = []
        world = self.world_size
        rest, size = torch.empty(0, dtype=torch.int64), 0
        for clips, size in self.buckets:
            pool = torch.cat([rest, clips[torch.randperm(len(clips), generator=generator)]])
            whole = len(pool) // size * size
            drawn += pool[:whole].split(size) if whole else []
            rest = pool[whole:]
        if not len(rest):
            return drawn
        if not drawn:
            return [rest[: len(rest) // world * world]]
        # A tiny batch would be a strange step, and processes take equal parts: the last batch gives some of its clips.
        taken = max(size // world // 2 * world, -(-len(rest) // world) * world) - len(rest)
        last, given = drawn[-1][: len(drawn[-1]) - taken], drawn[-1][len(drawn[-1]) - taken :]
        return [*drawn[:-1], last[: len(last) // world * world], torch.cat([given, rest])]
