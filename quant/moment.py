"""How a part of a prepared model runs at one moment: activation checkpointing runs it so again, later."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace

from torch import Tensor, nn

from quant.activation import Mode, QuantActivation
from quant.bits import FULL_PRECISION
from quant.observation import Observation
from quant.observers import MinMax
from quant.prepare import modes_of

Ranges = list[tuple[QuantActivation, Mapping[str, Tensor]]]


class Moment:
    """Remembers how a part of a prepared model runs now: bit-width, observation, reused weights, padding, ranges.

    Args:
        part: a block of a prepared model; of one that is not prepared, padding alone is remembered.
    """

    def __init__(self, part: nn.Module) -> None:
        activations = {name: module for name, module in part.named_modules() if isinstance(module, QuantActivation)}
        own = {id(activation) for activation in activations.values()}
        # Of its own layers only: the weights of all blocks before would stay in memory.
        self.modes = [(mode, _without_record(mode, own)) for mode in modes_of(activations)]
        self.variables = copy_context()
        # Only an observation of this very pass moves the ranges it runs with before the backward pass.
        self.ranges: Ranges = [
            (activation, {name: buffer.clone() for name, buffer in _ranges(activation).items()})
            for activation in activations.values()
            if activation.mode.observation is not None and activation.mode.bit_width != FULL_PRECISION
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the part runs as it ran then, on any thread, and nothing is observed a second time."""
        tokens = [(variable, variable.set(value)) for variable, value in self.variables.items()]
        modes = [(mode, replace(mode)) for mode, _ in self.modes]
        ranges: Ranges = [(activation, _ranges(activation)) for activation, _ in self.ranges]
        try:
            for mode, then in self.modes:
                vars(mode).update(vars(then) | {"weights": None if then.weights is None else dict(then.weights)})
            _set(self.ranges)
            yield
        finally:
            _set(ranges)
            for mode, now in modes:
                vars(mode).update(vars(now))
            for variable, token in tokens:
                variable.reset(token)


class Unrecorded(Observation):
    """Stands for an observation that has seen these values already."""

    def record(self, activation: QuantActivation, values: Tensor, valid: Tensor | None) -> None:
        """Keeps nothing."""


def _without_record(mode: Mode, own: set[int]) -> Mode:
    weights = None if mode.weights is None else {key: value for key, value in mode.weights.items() if key in own}
    # Not None: attention computes in another way where it is observed.
    return replace(mode, weights=weights, observation=None if mode.observation is None else Unrecorded(MinMax()))


def _ranges(activation: QuantActivation) -> dict[str, Tensor]:
    buffers = activation.named_buffers(recurse=False)
    return {name: buffer for name, buffer in buffers if name.startswith("activation_")}


def _set(ranges: Ranges) -> None:
    for activation, buffers in ranges:
        for name, buffer in buffers.items():
            setattr(activation, name, buffer)
