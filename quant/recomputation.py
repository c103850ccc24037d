"""How a part of a prepared model runs at one moment: activation checkpointing runs it so again, later."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace

from torch import Tensor, nn

from quant.activation import RUNS, QuantActivation, Run
from quant.bits import FULL_PRECISION
from quant.prepare import modes_of
from quant.ranges.observation import Observation
from quant.ranges.observers import MinMax

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
        self.runs = {mode: _without_record(mode.run, own) for mode in modes_of(activations)}
        self.variables = {variable: value for variable, value in copy_context().items() if variable is not RUNS}
        # Only an observation of this very pass moves the ranges it runs with before the backward pass.
        self.ranges: Ranges = [
            (activation, {name: buffer.clone() for name, buffer in _ranges(activation).items()})
            for activation in activations.values()
            if activation.mode.run.observation is not None and activation.mode.run.bit_width != FULL_PRECISION
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, the part runs as it ran then, on any thread, and nothing is observed a second time."""
        # A copy: what the part quantizes anew is of this pass alone.
        runs = {
            mode: replace(run, weights=None if run.weights is None else dict(run.weights))
            for mode, run in self.runs.items()
        }
        variables = {**self.variables, RUNS: {**RUNS.get(), **runs}}
        tokens = [(variable, variable.set(value)) for variable, value in variables.items()]
        ranges: Ranges = [(activation, _ranges(activation)) for activation, _ in self.ranges]
        try:
            _set(self.ranges)
            yield
        finally:
            _set(ranges)
            for variable, token in tokens:
                variable.reset(token)


class Unrecorded(Observation):
    """Stands for an observation that has seen these values already."""

    def record(self, activation: QuantActivation, values: Tensor, valid: Tensor | None) -> None:
        """Keeps nothing."""


def _without_record(run: Run, own: set[int]) -> Run:
    weights = None if run.weights is None else {key: value for key, value in run.weights.items() if key in own}
    # Not None: attention computes in another way where it is observed.
    return replace(run, weights=weights, observation=None if run.observation is None else Unrecorded(MinMax()))


def _ranges(activation: QuantActivation) -> dict[str, Tensor]:
    buffers = activation.named_buffers(recurse=False)
    return {name: buffer for name, buffer in buffers if name.startswith("activation_")}


def _set(ranges: Ranges) -> None:
    for activation, buffers in ranges:
        for name, buffer in buffers.items():
            setattr(activation, name, buffer)
