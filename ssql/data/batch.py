"""Items and batches: inputs, lengths, labels and indices.

An item is a dict: inputs (waveform (samples,) at 16,000 Hz, or image (channels, height, width) in [0, 1]),
labels (task name to a class as int, or a number to predict as float), index (int). A batch is a dict: inputs
(waveforms padded with zeros), lengths (int64 (batch,) in samples, None for images), labels (task name to int64 or
float32 (batch,)), indices (int64 (batch,)). Where the data says what is spoken, an item has texts (str) and a batch
texts (a list of str).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Subset

from ssql.data.unread import Unread

Batch = dict[str, Any]


class LabelledTensors(Dataset[Batch]):
    """Inputs in memory, or read where they are asked for, with a label for each task.

    Args:
        inputs: waveforms (samples,), or images as uint8 (channels, height, width) or float in [0, 1].
        labels: task name to one label an input.
        texts: what is said in each input; None when that is not known.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor] | Tensor,
        labels: Mapping[str, Sequence[float]],
        texts: Sequence[str] | None = None,
    ) -> None:
        self.inputs, self.labels, self.texts = inputs, labels, texts

    def __len__(self) -> int:
        """Number of items."""
        return len(self.inputs)

    @property
    def lengths(self) -> list[int] | None:
        """Samples of each clip; None for images."""
        if isinstance(self.inputs, Unread):
            return self.inputs.lengths
        return [len(clip) for clip in self.inputs] if self.inputs[0].dim() == 1 else None

    def __getitem__(self, index: int) -> Batch:
        """The item at an index."""
        inputs = self.inputs[index]
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        item = {
            "inputs": inputs,
            "labels": {task: values[index] for task, values in self.labels.items()},
            "index": index,
        }
        return item if self.texts is None else item | {"texts": self.texts[index]}

    def __getitems__(self, indices: Sequence[int]) -> Batch | list[Batch]:
        """The items at indices as torch's loader asks for them; images as a batch already, all at once."""
        if not isinstance(self.inputs, Tensor):
            return [self[index] for index in indices]
        inputs = self.inputs[indices]
        batch = {
            "inputs": inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs,
            "lengths": None,
            "labels": {task: torch.tensor([values[i] for i in indices]) for task, values in self.labels.items()},
            "indices": torch.tensor(indices),
        }
        return batch if self.texts is None else batch | {"texts": [self.texts[i] for i in indices]}

    def subset(self, indices: Sequence[int]) -> "LabelledTensors":
        """Some of the items, in the order given; waveforms are shared, images copied, and no file is read."""
        inputs: Sequence[Tensor] | Tensor
        if isinstance(self.inputs, Unread):
            inputs = self.inputs.subset(indices)
        else:
            inputs = (
                self.inputs[list(indices)] if isinstance(self.inputs, Tensor) else [self.inputs[i] for i in indices]
            )
        labels = {task: [values[i] for i in indices] for task, values in self.labels.items()}
        return LabelledTensors(inputs, labels, None if self.texts is None else [self.texts[i] for i in indices])


def in_memory(dataset: Dataset[Batch]) -> LabelledTensors | None:
    """A data set, or the chosen part of one, with its labels at hand; None where its items are made on the fly."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, LabelledTensors):
        return dataset.dataset.subset(dataset.indices)
    return dataset if isinstance(dataset, LabelledTensors) else None


def collate(items: Sequence[Batch] | Batch) -> Batch:
    """Items to a batch, if they are not one already; clips are padded with zeros to the longest."""
    if isinstance(items, dict):
        return items
    inputs = [item["inputs"] for item in items]
    audio = inputs[0].dim() == 1
    batch = {
        "inputs": pad_sequence(inputs, batch_first=True) if audio else torch.stack(inputs),
        "lengths": torch.tensor([len(clip) for clip in inputs]) if audio else None,
        "labels": {task: torch.tensor([item["labels"][task] for item in items]) for task in items[0]["labels"]},
        "indices": torch.tensor([item["index"] for item in items]),
    }
    return batch | {"texts": [item["texts"] for item in items]} if "texts" in items[0] else batch
