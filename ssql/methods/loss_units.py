"""Losses of several precisions side by side, none of which drowns the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Share of the past in a running mean.
MOMENTUM = 0.95
# Of the largest running mean: a smaller one counts as so much. A student that starts as its teacher has a loss of zero.
LEAST = 1e-3


class LossUnits(nn.Module):
    """Divides each precision's loss by its own running mean; the means are part of a checkpoint.

    Args:
        names: of the precisions, such as `fp` and `w4a8`; without them losses stay as they are.
    """

    means: Tensor

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.places = {name: place for place, name in enumerate(names)}
        self.register_buffer("means", torch.full((len(names),), torch.nan), persistent=bool(names))

    def forward(self, name: str, loss: Tensor) -> Tensor:
        """The loss, shape (), in units of its running mean, to which it is added first."""
        if not self.places:
            return loss
        place, found = self.places[name], loss.detach().float()
        before = self.means[place]
        self.means[place] = torch.where(before.isnan(), found, MOMENTUM * before + (1 - MOMENTUM) * found)
        least = LEAST * self.means.nan_to_num().max()
        unit = self.means[place].maximum(least).clamp_min(torch.finfo(torch.float32).tiny)
        return loss / unit
