"""Numbers with units (pitch, energy, speaking rate) by squared error of their normalized values; MAE and R2."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from encoders import Encoder, Head
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.data.labels import check_numbers
from ssql.tasks.task import Score, Task


class Regression(Task):
    """One or more numbers a clip; the head answers in their units.

    Args:
        units: name in the data's labels to unit.
    """

    kind = "regression"
    metric = "r2"
    mode = "max"

    def __init__(self, units: Mapping[str, str]) -> None:
        super().__init__(", ".join(units), list(units), list(units.values()))
        self.std = torch.ones(len(units))

    def new_head(self, encoder: Encoder, data: DataModule) -> Head:
        """A head whose answers have the mean and deviation of the training split."""
        head = super().new_head(encoder, data)
        assert head.mean is not None and head.std is not None
        values = torch.stack(list(_answers(data, "train", self.classes).values()), dim=1)
        head.mean.copy_(values.mean(dim=0))
        head.std.copy_(values.std(dim=0, correction=0))
        return head

    def check_head(self, head: Head) -> None:
        """Raise ValueError where a head is another task's; take over its normalization."""
        super().check_head(head)
        assert head.std is not None
        self.std = head.std.clone()

    def check_data(self, encoder: Encoder, data: DataModule) -> None:
        """Raise ValueError where a target never changes or is not finite."""
        super().check_data(encoder, data)
        self._check_numbers(data, "train")

    def unanswered(self, item: Batch) -> set[str]:
        """What an item has no answer for."""
        return set(self.classes) - item["labels"].keys()

    def check_split(self, data: DataModule, split: str) -> None:
        """Raise ValueError where R2 is undefined: a target that never changes, or is not finite."""
        super().check_split(data, split)
        self._check_numbers(data, split)

    def _check_numbers(self, data: DataModule, split: str) -> None:
        for (name, values), unit in zip(_answers(data, split, self.classes).items(), self.units or (), strict=True):
            check_numbers(name, split, values.numpy(), unit)

    def loss(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> Tensor:
        """Mean square error of values (batch, targets), each in its training deviations."""
        std = self.std.to(outputs.device)
        return F.mse_loss(outputs.float() / std, self._targets(batch) / std)

    def metrics(self) -> MetricCollection:
        """Mean absolute error and R2 of each target."""
        count = len(self.classes)
        return MetricCollection(
            {"mae": MeanAbsoluteError(num_outputs=count), "r2": R2Score(multioutput="raw_values")},
            compute_groups=False,
        )

    def answers(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values and targets, each (batch, targets)."""
        return outputs.float(), self._targets(batch)

    def scores(self, metrics: MetricCollection) -> list[Score]:
        """MAE in the target's unit, R2 (1 is perfect, 0 the mean of the split)."""
        values = {name: value.view(-1).tolist() for name, value in metrics.compute().items()}
        assert self.units is not None
        return [
            Score(target, metric, values[metric][index], unit if metric == "mae" else "")
            for index, (target, unit) in enumerate(zip(self.classes, self.units, strict=True))
            for metric in ("mae", "r2")
        ]

    def _targets(self, batch: Batch) -> Tensor:
        return torch.stack([batch["labels"][name] for name in self.classes], dim=1).float()


def _answers(data: DataModule, split: str, names: Sequence[str]) -> dict[str, torch.Tensor]:
    dataset: Any = data.dataset(split)
    if not hasattr(dataset, "labels"):  # clips behind noise, a part of other data
        items = [dataset[index]["labels"] for index in range(len(dataset))]
        return {name: torch.tensor([labels[name] for labels in items], dtype=torch.float32) for name in names}
    return {name: torch.tensor(dataset.labels[name], dtype=torch.float32) for name in names}
