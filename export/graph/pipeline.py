"""What one file holds, as one module: front end, encoder, head, tokenizer; run in torch."""

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from encoders import Encoder, Head, Tokenizer, Tokens
from export.graph.head import ExportedHead
from export.graph.tokenizer import ExportedTokenizer
from quant import FULL_PRECISION, BitWidth, at


class Runs(Protocol):
    """A module with an encoder that has bit-widths."""

    encoder: Any

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors in, tensors out."""


class Pipeline(nn.Module):
    """Front end, encoder, head, tokenizer: each optional but the encoder; tensors in and tensors out.

    Args:
        encoder: speech or vision.
        front_end: takes waveforms and lengths in samples; None where the input is log-mel or normalized pixels.
        head: gets pooled features, or those of the frames (ctc).
        tokenizer: gets the features of the frames.
    """

    def __init__(
        self,
        encoder: Encoder,
        front_end: nn.Module | None = None,
        head: Head | ExportedHead | None = None,
        tokenizer: Tokenizer | ExportedTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.front_end, self.head, self.tokenizer = encoder, front_end, head, tokenizer

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Features, their lengths (speech), logits or values (with a head), tokens and their lengths (a tokenizer)."""
        if self.front_end is not None:
            inputs = self.front_end(*inputs)
        outputs = self.encoder(*inputs)
        features, *lengths = outputs if isinstance(outputs, tuple) else (outputs,)
        tokens = () if self.tokenizer is None else self.tokenizer(features, *lengths)
        if self.head is None:
            return (features, *lengths, *tokens)
        taken = features if self.head.task == "ctc" else self.encoder.pool(features, *lengths)
        return (features, *lengths, self.head(taken), *tokens)

    def parted(self, outputs: list[Tensor]) -> tuple[list[Tensor], Tokens | None]:
        """Outputs without the tokens, and the tokens."""
        if self.tokenizer is None:
            return outputs, None
        count = len(Tokens._fields)
        return outputs[:-count], Tokens(*outputs[-count:])


@torch.no_grad()
def run_in_torch(pipeline: Runs, run: BitWidth, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a pipeline with its encoder at a bit-width."""
    with nullcontext() if run == FULL_PRECISION else at(pipeline.encoder, run):
        return list(pipeline(*inputs))
