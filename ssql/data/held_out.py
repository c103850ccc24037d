"""A data module whose training split gives a part of itself to validation."""

import torch
from torch.utils.data import DataLoader, Dataset

from quant.checks import check_at_least
from ssql.data.batch import Batch, in_memory
from ssql.data.module import DataModule, Split


class HeldOut(DataModule):
    """The splits `train` and `validation`, both drawn by seed from another module's `train`; its other splits stay.

    Args:
        data: the other module.
        share: of the labelled training items that validate, from above 0 to below 1.
        limit: labelled training items in all, those that validate included; every one of them when None.
        balance: name of classes that validation and a limited training split hold in equal parts, as far as they go.
        seed: of the draw.

    Raises:
        ValueError: another share, or a split that would be empty.
    """

    def __init__(
        self,
        data: DataModule,
        share: float = 0.1,
        limit: int | None = None,
        balance: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data.batch_size, data.num_workers, data.seed, data.batch_seconds)
        check_validation(share)
        check_at_least(2, train_limit=limit)
        self.data, self.share, self.limit, self.balance, self.draw_seed = data, share, limit, balance, seed
        self.modality = data.modality  # type: ignore[misc]

    def load(self) -> dict[str, Dataset[Batch]]:
        """Draw both splits."""
        whole = in_memory(self.data.dataset("train"))
        if whole is None:
            raise ValueError(
                f"{type(self.data).__name__} makes its training items on the fly: a part of them cannot be set aside "
                "for validation; give the data inside it"
            )
        self.classes, self.targets = self.data.classes, self.data.targets
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(self.draw_seed)).tolist()
        if self.balance is not None:
            order = in_turns(order, [whole.labels[self.balance][index] for index in order])
        order = order[: self.limit]
        cut = round(self.share * len(order))
        if not 0 < cut < len(order):
            raise ValueError(
                f"{len(order)} labelled training items leave none for training or for validation at a share of "
                f"{self.share}: give more items, or another share"
            )
        return {
            "train": whole.subset(order[cut:]),
            "validation": whole.subset(order[:cut]),
            **{split: self.data.splits[split] for split in self.data.test_splits},
        }

    def empty_split(self, split: Split) -> str:
        """The other data's sentence."""
        return self.data.empty_split(split)

    @property
    def test_splits(self) -> list[str]:
        """Every split of the other module but its training split."""
        return self.data.test_splits

    @property
    def evaluated_splits(self) -> list[str]:
        """Validation, then the test splits."""
        return ["validation", *self.test_splits]

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, in order."""
        return self.evaluation_dataloader("validation")


def check_validation(share: float) -> None:
    """Raise ValueError for a share that leaves nothing to train on or nothing to validate with."""
    if not 0 < share < 1:
        raise ValueError(f"validation, the share of training items, must be above 0 and below 1, got {share}")


def in_turns(items: list[int], classes: list[float]) -> list[int]:
    """The items so that classes take turns: every first of its class, every second, ...; otherwise in their order."""
    seen: dict[float, int] = {}
    rank = []
    for name in classes:
        seen[name] = seen.get(name, 0) + 1
        rank.append(seen[name])
    return [items[place] for place in sorted(range(len(items)), key=rank.__getitem__)]
