"""Losses of several precisions side by side, none of which drowns the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssql.methods.gathering import mean_over_ranks

# Share of the past in a running mean.
MOMENTUM = 0.95
# Of the largest running mean: a smaller one counts as so much. A student that starts as its teacher has a loss of zero.
LEAST = 1e-3


class LossUnits(nn.Module):
    """Divides each precision's loss by its own running mean over steps and processes; part of a checkpoint.

    Args:
        names: of the precisions, such as `fp` and `w4a8`; without them losses stay as they are.
    """

    means: Tensor

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.places = {name: place for place, name in enumerate(names)}
        self.register_buffer("means", torch.zeros(len(names)), persistent=bool(names))

    def forward(self, name: str, loss: Tensor) -> Tensor:
        """The loss, shape (), in units of its running mean, to which it is added first."""
        if not self.places:
            return loss
        # A copy: the mean over processes is taken in place.
        place, found = self.places[name], mean_over_ranks(loss.detach().float().clone())
        before = self.means[place]
        self.means[place] = torch.where(before == 0, found, MOMENTUM * before + (1 - MOMENTUM) * found)
        least = LEAST * self.means.max()
        unit = self.means[place].maximum(least).clamp_min(torch.finfo(torch.float32).tiny)
        return loss / unit
