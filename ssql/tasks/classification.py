"""Classes of clips or images by cross entropy; accuracy."""

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ssql.data.batch import Batch
from ssql.tasks.task import Score, Task


class Classification(Task):
    """One class a clip or image.

    Args:
        label: name in the data's labels.
        classes: names of the classes.

    Raises:
        ValueError: fewer than two classes.
    """

    kind = "classification"
    metric = "accuracy"
    mode = "max"

    def __init__(self, label: str, classes: list[str]) -> None:
        if len(classes) < 2:
            raise ValueError(f"task {label!r} has {len(classes)} class: there is nothing to tell apart")
        super().__init__(label, list(classes))

    def loss(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> Tensor:
        """Cross entropy of logits (batch, classes), in float32."""
        return F.cross_entropy(outputs.float(), batch["labels"][self.label])

    def metrics(self) -> MetricCollection:
        """Share of items whose class is right."""
        return MetricCollection({"accuracy": MulticlassAccuracy(len(self.classes), average="micro")})

    def answers(self, outputs: Tensor, lengths: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels."""
        return outputs, batch["labels"][self.label]

    def scores(self, metrics: MetricCollection) -> list[Score]:
        """Accuracy in percent."""
        return [Score(self.label, "accuracy", 100 * float(metrics.compute()["accuracy"]), "%")]
