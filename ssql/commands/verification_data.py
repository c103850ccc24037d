"""The clips that files are verified with, and the labelled data of their heads."""

from torch import Tensor

import export as onnx_export
from encoders import Encoder, Head
from ssql.data import DataModule
from ssql.evaluation.probe_head import labelled_test

# Of data that a file is verified with.
CLIPS = 32


def labelled_of_head(data: DataModule | None, head: Head | None, task: str | None) -> onnx_export.Labelled | None:
    """Test data of a head; None without, and where nobody asked for a task that the data has no label for."""
    if data is None or head is None or head.task == "regression":
        return None
    texts = getattr(data.dataset("train"), "texts", None)
    has_label = texts is not None if head.task == "ctc" else head.label in data.classes
    return labelled_test(data, head) if task is not None or has_label else None


def verification_clips(data: DataModule | None, encoder: Encoder) -> list[Tensor] | None:
    """At most 32 clips or images, evenly spread over the test split, or over the training split where it is empty.

    Raises:
        ValueError: data for another kind of encoder.
    """
    if data is None:
        return None
    if data.modality != encoder.modality:
        raise ValueError(f"the encoder is for {encoder.modality}, the data is {data.modality}")
    for split in ("test", "train"):
        dataset = data.splits[split]
        size = len(dataset)  # type: ignore[arg-type]
        if size:
            places = range(0, size, -(-size // CLIPS))
            return [dataset[place]["inputs"] for place in places]
    raise ValueError("the data holds no clip to verify with")
