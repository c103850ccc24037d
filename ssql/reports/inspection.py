"""How an encoder's weights and activations are spread, layer by layer."""

from collections.abc import Mapping

import numpy as np
import torch

import quant
from encoders.base import Encoder
from quant.ranges.observers import Seen
from ssql.data import DataModule
from ssql.evaluation.calibration import calibrate_on
from ssql.reports.figures import Histogram

BINS = 60
PERCENTILES = (0, 0.1, 1, 50, 99, 99.9, 100)


def weight_histograms(encoder: Encoder) -> dict[str, Histogram]:
    """Of each quantized layer's weight, by name."""
    return {name: histogram(layer.weight.detach()) for name, layer in quant.quant_layers(encoder).items()}


def activation_histograms(encoder: Encoder, data: DataModule, batches: int) -> dict[str, Histogram]:
    """Of the input of each quantized layer at full precision, by name, from samples of the first training batches.

    Padding is left out. Where the policy shifts or smooths inputs, these are what is left: what is put on the grid. The
    encoder's ranges become those of these batches.
    """
    recorder = _Recorder()
    calibrate_on(encoder, data, batches, recorder)
    tensors = dict(zip(quant.quant_activations(encoder), recorder.seen, strict=True))
    return {name: histogram(values) for name, values in tensors.items() if len(values)}


def histogram(values: torch.Tensor) -> Histogram:
    """Of all values of a tensor, in 60 bins over its range."""
    array = values.float().flatten().cpu().numpy()
    counts, edges = np.histogram(array, BINS)
    return Histogram(counts, edges, np.percentile(array, PERCENTILES))


def range_table(histograms: Mapping[str, Histogram]) -> list[list[str]]:
    """A line for each layer: name, and the values at `PERCENTILES`."""
    return [[name, *(f"{value:.4g}" for value in spread.percentiles)] for name, spread in histograms.items()]


class _Recorder:
    """Observer of min-max ranges that keeps samples of what it saw."""

    samples = 8192
    by_bits = False

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def ranges(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (tensors, 1) each."""
        self.seen = [values[~values.isnan()] for values in seen.samples]
        return quant.MinMax().ranges(seen)
