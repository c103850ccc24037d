"""Set the activation ranges of a prepared model: from the passes of a training step, or from batches."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from quant.activation import running
from quant.bits import BitWidth, parse_bit_width
from quant.layers import QuantLayer
from quant.prepare import modes_of, quant_activations
from quant.ranges.observation import Observation
from quant.ranges.observers import Observer, parse_observer


@contextmanager
def observe(
    model: nn.Module, observer: str | Observer = "min_max", bit_width: str | BitWidth | None = None
) -> Iterator[None]:
    """Inside, every forward pass is observed; on leaving, it sets the layers' activation ranges.

    Passes of other threads are none of its own; those of all ranks of a distributed run are joined. If an exception
    leaves the block, the ranges stay as they were. Bias corrections belong to the ranges before and are dropped.

    Args:
        model: prepared, or a parent of prepared models.
        observer: `min_max` (published), `moving_average`, `mse`, or one with its own arguments.
        bit_width: the only run that the ranges are for, when it is known: `mse` then searches for no other.

    Raises:
        ValueError: unknown observer or bit-width, or a model that is not prepared, or with learned steps.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Linear(4, 2))
        >>> with quant.observe(model):
        ...     features = model(torch.randn(8, 4))  # a training step's pass in full precision
    """
    with _observed(model, observer, bit_width, start_empty=False):
        yield


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    observer: str | Observer = "min_max",
) -> None:
    """Set the activation ranges of a prepared model from data, in evaluation mode, without gradients.

    One calibration serves every bit-width. `mse` keeps up to 16 kB of each layer and batch
    until the end. Bias corrections belong to the ranges before and are dropped.

    Args:
        model: prepared.
        batches: what `forward` takes, one at a time.
        forward: runs the model on one batch; the model itself by default.
        observer: `min_max`, `moving_average` (over batches), `mse`, or one with its own arguments.

    Raises:
        ValueError: no batch at all, an unknown observer, a model with learned steps, or inputs of a layer that are NaN
            or infinite.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Linear(4, 2))
        >>> quant.calibrate(model, [torch.randn(8, 4) for _ in range(3)], observer="mse")
    """
    training = model.training
    model.eval()
    count = 0
    try:
        with torch.no_grad(), _observed(model, observer, None, start_empty=True):
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                (forward or model)(batch)
            if count == 0:
                raise ValueError("calibration got no batch: give at least one")
        for name, activation in quant_activations(model).items():
            low, high = activation.activation_min, activation.activation_max
            # Not observed is +inf and -inf.
            if not ((low > -torch.inf) & (high < torch.inf)).all():
                raise ValueError(f"calibration: inputs of layer {name!r} are NaN or infinite, they have no range")
    finally:
        model.train(training)


@contextmanager
def _observed(
    model: nn.Module, observer: str | Observer, bit_width: str | BitWidth | None, start_empty: bool
) -> Iterator[None]:
    activations = quant_activations(model)
    run = None if bit_width is None else parse_bit_width(bit_width)
    observation = Observation(parse_observer(observer))
    modes = modes_of(activations)
    learned = next((mode.learned for mode in modes if mode.learned is not None), None)
    if learned is not None:
        raise ValueError(
            f"steps are learned at {learned}: ranges are no longer observed (SSQL draws a bit-width each step; learned "
            "steps are for fine-tuning at one)"
        )
    with running(modes, observation=observation):
        yield
    observation.close(list(activations.values()), run, start_empty)
    for activation in activations.values():
        if isinstance(activation, QuantLayer):
            activation.drop_corrections()
