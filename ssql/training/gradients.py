"""Differentiate a loss now, hand its gradients over later: its activations are free in between."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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
        found = zip(wanted, _gradients(loss, wanted), strict=True)
    # Those that the loss does not depend on stay out of the graph: distributed averaging looks for them there.
    reached = [(parameter, gradient) for parameter, gradient in found if gradient is not None]
    result: Tensor = _Precomputed.apply(
        loss.detach(), [gradient for _, gradient in reached], *(parameter for parameter, _ in reached)
    )
    return result


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    # The graph knows gathered weights; FSDP hands their gradients to the shards in a backward pass alone.
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = tuple(parameter.grad for parameter in parameters)
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return gradients


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        # Two parameters may share one gradient, or it may be an expanded view: multiplying in place would be wrong.
        for index, gradient in enumerate(gradients):
            gradients[index] = gradient * factors[0]
        return None, None, *gradients
