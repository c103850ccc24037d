"""Ranges, mean outputs and sensitivities of an encoder, from the first training batches of a data module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import quant
from encoders.base import Encoder
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.terminal.progress import track


def prepare_anew(encoder: Encoder, policy: quant.Policy | None) -> None:
    """Prepare an encoder under a policy, whatever its own was; None keeps its own, or takes the default."""
    prepared = quant.is_prepared(encoder)
    if prepared and policy is not None:
        quant.unprepare(encoder)
    if not prepared or policy is not None:
        quant.prepare(encoder, policy)


def calibrate_on(encoder: Encoder, data: DataModule, batches: int, observer: str | quant.Observer = "min_max") -> None:
    """Set the activation ranges of a prepared encoder from the first training batches, not augmented."""
    looked_at = track(data.first_batches(batches), "calibrating: batches", _first(data, batches))
    quant.calibrate(encoder, looked_at, _embedding_of(encoder), observer)


def correct_bias_on(encoder: Encoder, data: DataModule, batches: int, bit_width: str) -> None:
    """Correct the biases of a calibrated encoder for a bit-width from the first training batches."""
    looked_at = track(data.first_batches(batches), f"correcting biases at {bit_width}: batches", _first(data, batches))
    quant.correct_bias(encoder, bit_width, looked_at, _embedding_of(encoder))


def sensitivities_on(encoder: Encoder, data: DataModule, batches: int) -> list[quant.Sensitivity]:
    """What each layer of a prepared encoder costs its embeddings at few weight bits, on the first training batches."""
    return quant.sensitivities(encoder, data.first_batches(batches), _embedding_of(encoder))


def _first(data: DataModule, batches: int) -> int:
    """How many of so many first batches there are."""
    return min(batches, len(data.evaluation_dataloader("train")))


def _embedding_of(encoder: Encoder) -> Callable[[Batch], Tensor]:
    device = next(encoder.parameters()).device
    return lambda batch: encoder.embed_raw(*inputs_of(batch, device))


def inputs_of(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Inputs and lengths of a batch on a device, as a front end takes them."""
    lengths = batch["lengths"]
    return batch["inputs"].to(device), None if lengths is None else lengths.to(device)
