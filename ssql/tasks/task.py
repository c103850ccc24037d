"""What all tasks share: a head, a loss, metrics, and the metric that chooses the best checkpoint."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from encoders import Encoder, Head
from encoders.heads import HeadTask
from ssql.data import DataModule
from ssql.data.batch import Batch


class Score(NamedTuple):
    """One number of a split: of which label, by which metric, in which unit."""

    task: str
    metric: str
    value: float
    unit: str


class Task(ABC):
    """Base of the tasks.

    Args:
        label: name of what is predicted in the data.
        classes: names of the classes, tokens or targets.
        units: of targets.

    Attributes:
        kind: of the head.
        metric: chooses the best checkpoint; the mean over labels where there are several.
        mode: whether the largest or the smallest is best.
    """

    kind: HeadTask
    metric: str
    mode: Literal["max", "min"]

    def __init__(self, label: str, classes: list[str], units: list[str] | None = None) -> None:
        self.label, self.classes, self.units = label, classes, units

    def new_head(self, encoder: Encoder, data: DataModule) -> Head:
        """A fresh head for this task on an encoder's features."""
        return Head(self.kind, encoder.feature_dim, self.classes, self.units, self.label)

    def check_head(self, head: Head) -> None:
        """Raise ValueError where a head is another task's."""
        for what, found, expected in (
            ("task", head.task, self.kind),
            ("label", head.label, self.label),
            ("classes", head.classes, self.classes),
            ("units", head.units, self.units),
        ):
            if found != expected:
                raise ValueError(
                    f"the encoder's folder has a head whose {what} is {found}, the data gives {expected}: start from "
                    "an encoder without a head (new_head true), or choose the head's own task and data"
                )

    def check_data(self, encoder: Encoder, data: DataModule) -> None:
        """Raise ValueError where encoder or data cannot serve the task."""
        if encoder.modality != data.modality:
            raise ValueError(f"the {encoder.name} encoder takes {encoder.modality}, the data is {data.modality}")

    def check_split(self, data: DataModule, split: str) -> None:
        """Raise ValueError where a split that is measured has no item, or no answer for the task."""
        missing = sorted(self.unanswered(data.dataset(split)[0]))
        if missing:
            raise ValueError(f"the items of the split {split} have no answer for {', '.join(missing)}")

    def unanswered(self, item: Batch) -> set[str]:
        """What an item has no answer for."""
        return {self.label} - item["labels"].keys()

    def outputs(self, encoder: Encoder, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features for the head, from what the front end gives: one embedding a clip or image."""
        return encoder.embed(inputs, lengths), None

    @abstractmethod
    def loss(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> Tensor:
        """Loss of the head's outputs on a batch, shape ()."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics; updated with what `answers` returns."""

    @abstractmethod
    def answers(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> tuple[Any, Any]:
        """Predictions and what was right, as the metrics take them."""

    @abstractmethod
    def scores(self, metrics: MetricCollection) -> list[Score]:
        """The values of metrics that have seen a split."""

    def quality(self, scores: list[Score]) -> float:
        """The one number that chooses the best checkpoint."""
        return float(torch.tensor([score.value for score in scores if score.metric == self.metric]).mean())
