"""Accuracy of a classification head on labelled data: a file's against torch's at the same bit-width."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnxruntime
from torch import Tensor

from encoders import Head
from export.model import Pipeline, run_file, run_in_torch
from export.signature import file_inputs
from quant import BitWidth

LARGEST_DIFFERENCE = 0.5  # points

# Inputs (waveforms or pixels in [0, 1]), lengths in samples (None for images), indices into the head's classes.
Labelled = Iterable[tuple[Tensor, Tensor | None, Tensor]]


@dataclass
class Accuracy:
    """Accuracy in percent of the same head on the same data.

    Attributes:
        label: what is predicted: `word`, `digit`, ...
        torch: with the encoder in torch.
        onnx: with the encoder in ONNX Runtime.
        clips: clips or images.
    """

    label: str
    torch: float
    onnx: float
    clips: int

    @property
    def agrees(self) -> bool:
        """Within half a point."""
        return abs(self.torch - self.onnx) <= LARGEST_DIFFERENCE

    def __str__(self) -> str:
        return f"{self.label} accuracy {self.onnx:.1f} % (torch {self.torch:.1f} %, {self.clips} clips)"


def compare_accuracy(
    session: onnxruntime.InferenceSession, reference: Pipeline, head: Head, run: BitWidth, form: str, labelled: Labelled
) -> Accuracy:
    """Accuracy of a head on a file's features, or of the file's own logits, and on torch's features.

    Args:
        session: of the file.
        reference: what the file holds, in torch.
        head: of task `classification`, for files without one.
        run: bit-width of the file.
        form: the file's input: `log_mel`, `waveform` or `images`.
        labelled: batches.

    Raises:
        ValueError: a head of another task, or no data.
    """
    if head.task != "classification":
        raise ValueError(f"accuracy is that of a classification head, not of {head.task}")
    own_head, pool = reference.head is not None, reference.encoder.pool
    right, clips = [0, 0], 0
    for inputs, lengths, labels in labelled:
        taken = file_inputs(reference.encoder, form, inputs, lengths)
        outputs = run_in_torch(reference, run, taken), run_file(session, taken)
        for place, (values, _) in enumerate(map(reference.parted, outputs)):
            logits = values[-1] if own_head else head(pool(*values))
            right[place] += int((logits.argmax(1) == labels).sum())
        clips += len(labels)
    if not clips:
        raise ValueError("no labelled data to compare the accuracy on")
    return Accuracy(head.label, 100 * right[0] / clips, 100 * right[1] / clips, clips)
