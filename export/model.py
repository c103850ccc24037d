"""What one file holds, as one module: front end, encoder and head; run in torch and, from its file, in ONNX Runtime."""

from contextlib import nullcontext

import onnxruntime
import torch
from torch import Tensor, nn

from encoders import Encoder, Head
from export.head import ExportedHead
from quant import FULL_PRECISION, BitWidth, at


class Pipeline(nn.Module):
    """Front end, encoder, head: each optional but the encoder; tensors in and tensors out.

    Args:
        encoder: speech or vision.
        front_end: takes waveforms and lengths in samples; None where the input is log-mel or normalized pixels.
        head: gets pooled features, or those of the frames (ctc).
    """

    def __init__(
        self, encoder: Encoder, front_end: nn.Module | None = None, head: Head | ExportedHead | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.front_end, self.head = encoder, front_end, head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Features, their lengths (speech), logits or values (with a head)."""
        if self.front_end is not None:
            inputs = self.front_end(*inputs)
        outputs = self.encoder(*inputs)
        features, *lengths = outputs if isinstance(outputs, tuple) else (outputs,)
        if self.head is None:
            return (features, *lengths)
        taken = features if self.head.task == "ctc" else self.encoder.pool(features, *lengths)
        return (features, *lengths, self.head(taken))


@torch.no_grad()
def run_in_torch(pipeline: Pipeline, run: BitWidth, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a pipeline with its encoder at a bit-width."""
    with nullcontext() if run == FULL_PRECISION else at(pipeline.encoder, run):
        return list(pipeline(*inputs))


def run_file(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a file, in its order."""
    feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]
