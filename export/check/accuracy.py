"""What a head says of labelled data, in a file and in torch at the same bit-width: agreement and accuracy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

import onnxruntime
from torch import Tensor

from encoders import Head
from export.check.inputs import file_inputs
from export.graph.pipeline import Pipeline, run_in_torch
from export.runtime.session import run_session
from quant import BitWidth

SMALLEST_AGREEMENT = 99.5  # percent of the clips

# Inputs (waveforms or pixels in [0, 1]), lengths in samples (None for images), and the right class or text of each.
Labelled = Iterable[tuple[Tensor, Tensor | None, Sequence[str]]]


@dataclass
class Accuracy:
    """Of the same head on the same data, in percent of clips (or images).

    Attributes:
        label: what is predicted: `word`, `digit`, `text`, ...
        torch: right with the encoder in torch.
        onnx: right with the encoder in ONNX Runtime.
        agreement: clips of which both say the same, right or wrong.
        clips: how many.
    """

    label: str
    torch: float
    onnx: float
    agreement: float
    clips: int

    @property
    def agrees(self) -> bool:
        """Whether both say the same of at least 99.5 % of the clips."""
        return self.agreement >= SMALLEST_AGREEMENT

    def __str__(self) -> str:
        accuracies = f"{self.onnx:.1f} % (torch {self.torch:.1f} %, {self.clips} clips)"
        return f"{self.label} accuracy {accuracies}, the same answer for {self.agreement:.1f} %"


def compare_accuracy(
    session: onnxruntime.InferenceSession, reference: Pipeline, head: Head, run: BitWidth, form: str, labelled: Labelled
) -> Accuracy:
    """Accuracy of a head on a file's features, or of the file's own logits, and on torch's features.

    Args:
        session: of the file.
        reference: what the file holds, in torch.
        head: the file's own, or for files without one a classification head.
        run: bit-width of the file.
        form: the file's input: `log_mel`, `waveform` or `images`.
        labelled: batches.

    Raises:
        ValueError: a head of numbers, one of frames for a file without a head, or no data.
    """
    own_head = reference.head is not None
    if head.task == "regression" or (head.task == "ctc" and not own_head):
        raise ValueError(f"a {head.task} head{'' if own_head else ' for a file without one'} has no accuracy of clips")

    def answers(outputs: list[Tensor]) -> list[str]:
        outputs, _ = reference.parted(outputs)
        if own_head:
            return head.answers(outputs[-1], *outputs[1:-1])
        return head.answers(head(reference.encoder.pool(*outputs)))

    in_torch: list[str] = []
    in_file: list[str] = []
    right: list[str] = []
    for inputs, lengths, labels in labelled:
        taken = file_inputs(reference.encoder, form, inputs, lengths)
        in_torch += answers(run_in_torch(reference, run, taken))
        in_file += answers(run_session(session, taken))
        right += labels
    if not right:
        raise ValueError("no labelled data to compare the accuracy on")
    torch, onnx, agreement = (
        100 * mean(a == b for a, b in zip(*pair, strict=True))
        for pair in ((in_torch, right), (in_file, right), (in_torch, in_file))
    )
    return Accuracy(head.label, torch, onnx, agreement, len(right))
