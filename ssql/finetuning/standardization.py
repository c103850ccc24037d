"""A head's inputs, standardized while it learns: features whose means dwarf their deviations are slow to learn on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from encoders import Head
from encoders.speech.frames import unpadded

SMALLEST_STD = 0.01  # of the features' mean deviation: one that hardly moves is not blown up


class Standardization(nn.Module):
    """Takes a mean off features and divides by a deviation; both are constants of a run.

    Args:
        mean: shape (feature_dim,).
        std: shape (feature_dim,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, outputs: Iterable[tuple[Tensor, Tensor | None]]) -> "Standardization":
        """That of the features of some batches.

        Args:
            outputs: embeddings (batch, feature_dim) and None, or frames (batch, frames, feature_dim) and how many of
                them each clip has, (batch,).
        """
        features = torch.cat(
            [found if lengths is None else unpadded(found, lengths) for found, lengths in outputs]
        ).float()
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), std.clamp_min(SMALLEST_STD * float(std.mean()) or 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., feature_dim) of mean 0 and deviation 1, as far as the batches told."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def move_out_of(self, head: Head) -> None:
        """Make a head give on standardized features what it gave on features."""
        head.linear.bias.add_(head.linear.weight @ self.mean)
        head.linear.weight.mul_(self.std)

    @torch.no_grad()
    def move_into(self, head: Head) -> None:
        """Make a head give on features what it gave on standardized ones; features stay as they are from now on."""
        head.linear.weight.div_(self.std)
        head.linear.bias.sub_(head.linear.weight @ self.mean)
        self.mean.zero_()
        self.std.fill_(1)
