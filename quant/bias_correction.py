"""Bias correction: what quantization adds to the mean of each layer's outputs is taken off its bias."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quant.bits import FULL_PRECISION, BitWidth, parse_bit_width
from quant.layers import QuantLayer
from quant.prepare import at, quant_layers
from quant.ranks import world_size


def correct_bias(
    model: nn.Module,
    bit_width: str | BitWidth,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
) -> None:
    """Correct the biases of a calibrated model for one bit-width, in place; other bit-widths do not change.

    Each batch passes in full precision and quantized. A layer's correction is the difference of its outputs' means,
    channel by channel, averaged over the batches; in the quantized pass it applies at once, so that the layers
    behind see corrected inputs (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", Sec. 4.2 and Appendix D, measured on data). A head trained on full-precision features needs it.

    Args:
        model: prepared and calibrated.
        bit_width: `w4a8`, ...
        batches: what `forward` takes, one at a time.
        forward: runs the model on one batch; the model itself by default.

    Raises:
        ValueError: full precision, no batch at all, a model that is not prepared.
        NotCalibratedError: a layer whose activation range was never observed.

    Example:
        >>> import quant, torch
        >>> batches = [torch.randn(8, 4) for _ in range(3)]
        >>> model = quant.prepare(torch.nn.Linear(4, 2))
        >>> quant.calibrate(model, batches)
        >>> quant.correct_bias(model, "w2a8", batches)
    """
    run = parse_bit_width(bit_width)
    layers = quant_layers(model)
    add_corrections(model, run)
    training = model.training
    model.eval()
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            means = _full_precision_means(model, layers, forward or model, batch)
            _correct(model, layers, run, forward or model, batch, means, count)
    finally:
        model.train(training)
    if count == 0:
        raise ValueError("bias correction got no batch: give at least one")


def add_corrections(model: nn.Module, run: BitWidth) -> None:
    """Buffers of zeros for the corrections of a bit-width, for a state dict that has them to fill in.

    Raises:
        ValueError: full precision, or a model that is not prepared.
    """
    check_correctable(run)
    for layer in quant_layers(model).values():
        layer.add_correction(run)


def add_roundings(model: nn.Module, run: BitWidth) -> None:
    """Buffers for the integers of a bit-width, for a state dict that has them to fill in.

    Raises:
        ValueError: full precision, or a model that is not prepared.
    """
    check_correctable(run)
    for layer in quant_layers(model).values():
        layer.add_rounding(run)


def rounded_bit_widths(model: nn.Module) -> list[BitWidth]:
    """The bit-widths whose integers were chosen on data (`round_weights`).

    Raises:
        ValueError: a model that is not prepared.
    """
    return list(dict.fromkeys(run for layer in quant_layers(model).values() for run in layer.rounded))


def check_correctable(bit_width: str | BitWidth) -> None:
    """Raise ValueError for a bit-width that cannot have corrections: an unknown one, or full precision."""
    if parse_bit_width(bit_width) == FULL_PRECISION:
        raise ValueError(
            "full precision has no integers to choose and no bias to correct: choose a bit-width such as w4a8"
        )


def corrected_bit_widths(model: nn.Module) -> list[BitWidth]:
    """The bit-widths that have corrections.

    Raises:
        ValueError: a model that is not prepared.
    """
    return list(next(iter(quant_layers(model).values())).corrected)


def drop_corrections(model: nn.Module) -> list[BitWidth]:
    """Forget the corrections and the chosen integers of all bit-widths, in place.

    They belong to the weights and ranges that they were found with.

    Returns:
        the bit-widths that had some.

    Raises:
        ValueError: a model that is not prepared.
    """
    dropped = corrected_bit_widths(model)
    for layer in quant_layers(model).values():
        layer.drop_corrections()
    return dropped


@torch.no_grad()
def _full_precision_means(
    model: nn.Module, layers: dict[str, QuantLayer], forward: Callable[[Any], Any], batch: Any
) -> dict[QuantLayer, Tensor]:
    means: dict[QuantLayer, Tensor] = {}

    def keep(layer: QuantLayer, inputs: Any, output: Tensor) -> None:
        means[layer] = layer.output_means(output)

    with _hooked(layers, keep), at(model, FULL_PRECISION):
        forward(batch)
    return means


@torch.no_grad()
def _correct(
    model: nn.Module, layers: dict[str, QuantLayer], run: BitWidth, forward: Callable[[Any], Any], batch: Any,
    means: dict[QuantLayer, Tensor], count: int,
) -> None:  # fmt: skip
    def correct(layer: QuantLayer, inputs: Any, output: Tensor) -> Tensor:
        change = layer.output_means(output) - means[layer]
        if world_size() > 1:
            dist.all_reduce(change)
            change /= world_size()
        # What is left after the corrections of the batches before counts as one batch among them.
        change /= count
        layer.correction(run).add_(change)
        return output - layer.along_channels(change, output)

    with _hooked(layers, correct), at(model, run, reuse_weights=True):
        forward(batch)


@contextmanager
def _hooked(layers: dict[str, QuantLayer], hook: Any) -> Iterator[None]:
    """Inside, the hook is called with each layer, its inputs and its output."""
    handles = [layer.register_forward_hook(hook) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
