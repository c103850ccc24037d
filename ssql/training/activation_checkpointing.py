"""Activation checkpointing: a block's activations are computed again in the backward pass instead of kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quant.recomputation import Moment
from ssql.training.batch_norm import frozen_statistics


def checkpoint_activations(encoder: nn.Module) -> None:
    """Make every block of an encoder, in place, keep its inputs only (Chen et al. 2016, Training Deep Nets with
    Sublinear Memory Cost).

    In training, what a block computes in between is computed again when the backward pass comes to it, with the
    same numbers: at the same bit-width, on the same ranges, with the same dropout, also where the backward pass runs
    outside of `quant.at`. Ranges and batch norms see the first computation alone. Losses and gradients stay; a
    training step takes about a third longer. Blocks keep their identity, names and Parameters.

    Args:
        encoder: with chains of blocks (see `blocks_of`).

    Raises:
        ValueError: no block was found.
    """
    blocks = blocks_of(encoder)
    if not blocks:
        raise ValueError(f"{type(encoder).__name__} has no chain of blocks (nn.Sequential, nn.ModuleList) to recompute")
    for block in blocks:
        block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost members of a model's chains, in order: transformer blocks, blocks of a ResNet's stages."""
    return _members(model, chained=False)


def _members(module: nn.Module, chained: bool) -> list[nn.Module]:
    children = list(module.children())
    if type(module) in (nn.Sequential, nn.ModuleList):
        return [member for child in children for member in _members(child, chained=True)]
    if chained:
        return [module] if children else []  # a single layer in a chain is no block
    return [member for child in children for member in _members(child, chained=False)]


@cache
def _checkpointed(form: type[nn.Module]) -> type[nn.Module]:
    class Checkpointed(form):  # type: ignore[valid-type,misc]
        def forward(self, *inputs: Any, **named: Any) -> Any:
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*inputs, **named)
            contexts = lambda: (nullcontext(), _again(self, Moment(self)))  # noqa: E731
            return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=contexts, **named)

    Checkpointed.__name__, Checkpointed.__qualname__ = form.__name__, form.__qualname__
    return Checkpointed


@contextmanager
def _again(block: nn.Module, moment: Moment) -> Iterator[None]:
    with moment.again(), frozen_statistics(block):
        yield
