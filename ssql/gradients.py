"""Differentiate a loss now, hand its gradients over later: its activations are free in between."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def differentiated_now(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The same loss with the same gradients, whose graph has been walked and freed already.

    The gradients wait in memory (as much as the parameters take) until the result is differentiated;
    they then flow into the parameters like any other, so that gradient accumulation, scaling, clipping and
    distributed averaging see nothing unusual.

    Args:
        loss: shape ().
        parameters: those that need no gradient are left alone.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    result: Tensor = _Precomputed.apply(loss.detach(), gradients, *wanted)
    return result


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        gradients = list(ctx.gradients)
        ctx.gradients = None
        # Two parameters may share one gradient, or it may be an expanded view: multiplying in place would be wrong.
        for index, gradient in enumerate(gradients):
            gradients[index] = None if gradient is None else gradient * factors[0]
        return None, None, *gradients
