"""What a random view of a batch is made by.

All randomness comes from torch's global generators; the training step seeds them from (seed, step, rank).
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from encoders.base import Encoder


class Augmentation(nn.Module, ABC):
    """Base of what makes a random view of a batch: options take a class that is made from it, and no other module."""

    @abstractmethod
    def forward(self, inputs: Tensor, lengths: Any, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """One view of a batch, ready for the encoder.

        Args:
            inputs: waveforms, shape (batch, samples), or images, shape (batch, channels, height, width).
            lengths: samples of each clip, shape (batch,); None for images.
            encoder: gives the front end.

        Returns:
            what the encoder takes; frames of each clip, shape (batch,), None for images.
        """
