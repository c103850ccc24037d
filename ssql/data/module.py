"""What all data modules share: splits, classes, a resumable training order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from encoders.speech.log_mel import SAMPLE_RATE
from quant.checks import check_above, check_at_least
from ssql.data.batch import Batch, collate
from ssql.data.sampler import BatchesBySeconds, ResumableSampler

# `train`, `test`, or another test split of the data's own.
Split = str


class DataModule(lightning.LightningDataModule, ABC):
    """Base of all data modules; batches are those of `ssql.data.batch`, never augmented.

    Args:
        batch_size: clips or images a batch, on each process.
        num_workers: processes that load data; 0 loads in the training process.
        seed: of the training order.
        batch_seconds: instead of batch_size, of audio in training: seconds of a batch on each process, padding
            included; its clips are of like length.

    Raises:
        ValueError: a batch_size below 1, num_workers below 0, or batch_seconds for images or not above 0.

    Attributes:
        modality: `audio` or `image`.
        classes: task name to class names in label order; empty for unlabelled data.
        targets: name of a number to predict, a task of regression, to its unit.
        probed_parts: parts of a clip whose mean features a probe sees side by side; one mean knows no order in time.
    """

    modality: ClassVar[str]

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, seed: int = 0, batch_seconds: float | None = None
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers)
        check_above(0, batch_seconds=batch_seconds)
        if batch_seconds is not None and getattr(self, "modality", "audio") != "audio":
            raise ValueError("batch_seconds is for audio: images take batch_size")
        self.batch_seconds = batch_seconds
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.classes: dict[str, list[str]] = {}
        self.targets: dict[str, str] = {}
        self.probed_parts = 1
        self._splits: dict[str, Dataset[Batch]] = {}

    @abstractmethod
    def load(self) -> dict[str, Dataset[Batch]]:
        """Find or make the data: fills `classes` and `targets`, returns the splits `train`, `test` and any others."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data once."""
        if not self._splits:
            self._splits = self.load()

    @property
    def tasks(self) -> list[str]:
        """Names of all labels: classes, then targets."""
        self.setup()
        return [*self.classes, *self.targets]

    @property
    def test_splits(self) -> list[str]:
        """Every split but `train`."""
        self.setup()
        return [split for split in self._splits if split != "train"]

    @property
    def evaluated_splits(self) -> list[str]:
        """Every split that training measures."""
        return self.test_splits

    @property
    def splits(self) -> dict[str, Dataset[Batch]]:
        """Every split, one without items too."""
        self.setup()
        return self._splits

    def dataset(self, split: Split) -> Dataset[Batch]:
        """A split.

        Raises:
            ValueError: no such split, or one without items.
        """
        self.setup()
        if split not in self._splits:
            raise ValueError(f"the data have no split {split!r}; they have: {', '.join(self._splits)}")
        dataset = self._splits[split]
        if not len(dataset):  # type: ignore[arg-type]
            raise ValueError(self.empty_split(split))
        return dataset

    def said(self) -> dict[Split, list[tuple[str, str | None]]]:
        """Of each test split, every clip's name and what is said in it, None where the data do not know."""
        found: dict[Split, list[tuple[str, str | None]]] = {}
        for split in self.test_splits:
            dataset = self.dataset(split)
            items = [dataset[place] for place in range(len(dataset))]  # type: ignore[arg-type]
            found[split] = [(f"clip {place}", item.get("texts")) for place, item in enumerate(items)]
        return found

    def empty_split(self, split: Split) -> str:
        """The sentence for a split without items, which is an error only where the split is needed."""
        return f"the {split} split of {type(self).__name__} has no items: give it some"

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that each process has in an epoch.

        Raises:
            ValueError: fewer items than one batch.
        """
        if self.batch_seconds is not None:
            return len(self._batches_by_seconds(self.batch_seconds, 0, world_size))
        size = len(self.dataset("train"))  # type: ignore[arg-type]
        if size // world_size < self.batch_size:
            raise ValueError(
                f"{size} training items on {world_size} process(es) do not fill one batch of {self.batch_size}: "
                "lower batch_size or add data"
            )
        return size // world_size // self.batch_size

    @property
    def largest_batch(self) -> int:
        """The most items that a training batch of one process may have."""
        if self.batch_seconds is None:
            return self.batch_size
        return self._batches_by_seconds(self.batch_seconds, 0, 1).largest

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training split, from where an interrupted run stopped.

        Raises:
            ValueError: fewer items than one batch.
        """
        dataset = self.dataset("train")
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler: BatchesBySeconds | ResumableSampler
        order: dict[str, Any]
        if self.batch_seconds is not None:
            sampler = self._batches_by_seconds(self.batch_seconds, rank, world_size)
            batches, order = len(sampler), {"batch_sampler": sampler}
        else:
            batches = self.batches_per_epoch(world_size)
            size, lengths = len(dataset), getattr(dataset, "lengths", None)  # type: ignore[arg-type]
            sampler = ResumableSampler(size, self.batch_size, self.seed, rank, world_size, lengths=lengths)
            order = {"batch_size": self.batch_size, "sampler": sampler, "drop_last": True}
        epoch, sampler.skip = self._begin(batches)
        sampler.set_epoch(epoch)
        return DataLoader(
            dataset, num_workers=self.num_workers, collate_fn=collate, pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0, **order,
        )  # fmt: skip

    def _begin(self, batches: int) -> tuple[int, int]:
        """The epoch of so many batches that training begins in, and how many of them an interrupted run has had.

        Lightning restores its loops before it asks for the loader, and does not skip batches itself. It tells the epoch
        to the sampler only afterwards: too late where workers have begun to load.
        """
        if self.trainer is None:
            return 0, 0
        limit = self.trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
        return divmod(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, max(1, batches))

    def _batches_by_seconds(self, seconds: float, rank: int, world_size: int) -> BatchesBySeconds:
        lengths = getattr(self.dataset("train"), "lengths", None)
        if lengths is None:
            raise ValueError(f"{type(self).__name__} does not know how long its clips are: take batch_size")
        return BatchesBySeconds(lengths, int(seconds * SAMPLE_RATE), self.seed, rank, world_size)

    def evaluation_dataloader(self, split: Split) -> DataLoader[Batch]:
        """A whole split, in order."""
        return DataLoader(self.dataset(split), self.batch_size, num_workers=self.num_workers, collate_fn=collate)

    def first_batches(self, count: int) -> Iterator[Batch]:
        """The first training batches, not augmented: what calibration and the like look at.

        Raises:
            ValueError: a count below 1.
        """
        check_at_least(1, batches=count)
        return (batch for _, batch in zip(range(count), self.evaluation_dataloader("train"), strict=False))
