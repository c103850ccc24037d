"""What `ssql quantize` looks at, and how far the features of a bit-width are from those in full precision."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import quant
from encoders.base import Encoder
from encoders.speech.log_mel import SAMPLE_RATE, FilledLogMel
from quant.checks import check_at_least
from ssql.data import DataModule
from ssql.data.batch import Batch, collate
from ssql.evaluation.calibration import inputs_of
from ssql.evaluation.layer_progress import LayerProgress
from ssql.terminal.progress import track

SECONDS, SECONDS_AT_ONCE = 480, 60  # looked at by default; in one batch
IMAGE = SECONDS / 256  # seconds that an image counts as
log = logging.getLogger(__name__)
# Encoder inputs and lengths, as `front_end` gives them.
Inputs = tuple[Tensor, Tensor | None]


def encoder_inputs(encoder: Encoder, data: DataModule, examples: int | None = None) -> list[Inputs]:
    """Batches for an encoder, of items drawn from the training split, the same ones each time.

    Args:
        encoder: whose front end the items pass.
        data: labels are not looked at.
        examples: clips or images; when None as many as make `SECONDS` of audio, or 256 images.

    Raises:
        ValueError: fewer than one example, or a training split without items.
    """
    check_at_least(1, examples=examples)
    device = next(encoder.parameters()).device
    batches: list[Inputs] = []
    dataset = data.dataset("train")
    count, own, filled = 0, 0.0, 0.0
    for items in _at_once(_drawn(encoder, dataset, examples), encoder):
        batches.append(encoder.front_end(*inputs_of(collate(items), device)))
        count += len(items)
        own += sum(len(item["inputs"]) for item in items) / SAMPLE_RATE
        filled += sum(_seconds(encoder, item) for item in items)
    speech = encoder.modality == "audio"
    length = f", {own:.0f} s" if speech else ""
    length += f", which silence fills to {filled:.0f} s" if speech and filled > own else ""
    what = "clips" if speech else "images"
    log.info("looking at %d of the %d %s of the training split%s", count, len(dataset), what, length)  # type: ignore[arg-type]
    return batches


def calibrate_on_inputs(encoder: Encoder, inputs: Sequence[Inputs], observer: str) -> None:
    """Set the activation ranges of a prepared encoder."""
    quant.calibrate(encoder, track(inputs, "calibrating: batches", len(inputs)), lambda each: encoder(*each), observer)


def round_on_inputs(
    encoder: Encoder, inputs: Sequence[Inputs], bit_width: str, progress: LayerProgress
) -> list[quant.RoundedLayer]:
    """Choose the weights' integers for a bit-width; layers that are done already are kept."""
    layers = list(quant.quant_layers(encoder))
    rows = list(progress.rows.get(quant.parse_bit_width(bit_width), []))
    groups = quant.round_weights(
        encoder, bit_width, inputs, lambda each: encoder(*each), encoder.stages, resume=bool(rows)
    )
    for group in track(groups, f"rounding at {bit_width}: layers", len(layers) - len(rows), len):
        progress.save(group, bit_width)
        rows += group
    return sorted(rows, key=lambda row: layers.index(row.layer))


@torch.no_grad()
def features_at(encoder: Encoder, inputs: Sequence[Inputs], bit_width: str) -> Tensor:
    """Features of all frames, or images, one after another: (count, feature_dim)."""
    with quant.at(encoder, bit_width, reuse_weights=True):
        outputs = [encoder(*each) for each in inputs]
    return torch.cat([each[0].flatten(0, 1) if isinstance(each, tuple) else each for each in outputs])


def departure(found: Tensor, exact: Tensor) -> float:
    """Squared error of features over the variance of exact ones, each dimension's mean taken off."""
    return float((found - exact).square().mean() / (exact - exact.mean(dim=0)).square().mean())


def _drawn(encoder: Encoder, dataset: Dataset[Batch], examples: int | None) -> Iterator[Batch]:
    """Items in a random order, always the same: the first of a folder would be one speaker's, or one class's."""
    size = len(dataset)  # type: ignore[arg-type]
    seconds = 0.0
    for count, index in enumerate(torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()):
        if count == examples or (examples is None and seconds >= SECONDS):
            return
        item = dataset[index]
        seconds += _seconds(encoder, item)
        yield item


def _at_once(items: Iterator[Batch], encoder: Encoder) -> Iterator[list[Batch]]:
    """Lists of items, each no more than fit into memory beside the features of all layers."""
    together: list[Batch] = []
    longest = 0.0
    for item in items:
        seconds = _seconds(encoder, item)
        if together and max(longest, seconds) * (len(together) + 1) > SECONDS_AT_ONCE:
            yield together
            together, longest = [], 0.0
        together.append(item)
        longest = max(longest, seconds)
    if together:
        yield together


def _seconds(encoder: Encoder, item: dict[str, Any]) -> float:
    front_end = encoder.front_end
    if encoder.modality == "image":
        return IMAGE
    samples = len(item["inputs"])
    if isinstance(front_end, FilledLogMel):
        samples = front_end.samples if front_end.margin is None else min(samples + front_end.margin, front_end.samples)
    return samples / SAMPLE_RATE
