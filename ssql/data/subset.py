"""Fewer clips of other data, where all of them would take too long."""

import torch
from torch import Generator
from torch.utils import data as torch_data
from torch.utils.data import Dataset

from quant.checks import check_at_least
from ssql.data.batch import Batch
from ssql.data.module import DataModule, Split


class Subset(DataModule):
    """A random part of another data module's training and test items; its other splits are left out.

    Args:
        data: whose items they are; must be given.
        train_size: training items; all of them where there are no more.
        test_size: test items.
        seed: of the choice.

    Raises:
        ValueError: no other data.
    """

    def __init__(
        self, data: DataModule | None = None, train_size: int = 1000, test_size: int = 500, seed: int = 0
    ) -> None:
        if data is None:  # as the command line has it for `--data Subset` alone
            raise ValueError("Subset takes its items from other data: name them, like --data.data SpokenWords")
        super().__init__(data.batch_size, data.num_workers, data.seed, data.batch_seconds)
        check_at_least(1, train_size=train_size, test_size=test_size)
        self.probed_parts = data.probed_parts
        self.modality = data.modality  # type: ignore[misc]
        self.data, self.sizes, self.choice_seed = data, {"train": train_size, "test": test_size}, seed

    def load(self) -> dict[str, Dataset[Batch]]:
        """Choose the items of both splits."""
        splits: dict[str, Dataset[Batch]] = {}
        for split, size in self.sizes.items():
            dataset = self.data.splits[split]
            order = torch.randperm(len(dataset), generator=Generator().manual_seed(self.choice_seed))  # type: ignore[arg-type]
            splits[split] = torch_data.Subset(dataset, order[:size].sort().values.tolist())
        self.classes, self.targets = self.data.classes, self.data.targets
        return splits

    def empty_split(self, split: Split) -> str:
        """The other data's sentence where they have no items themselves."""
        return super().empty_split(split) if len(self.data.splits[split]) else self.data.empty_split(split)  # type: ignore[arg-type]
