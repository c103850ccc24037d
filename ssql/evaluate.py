"""What a frozen encoder still knows at each bit-width: probes of its quantized features, quantizers side by side."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import quant
from encoders.encoder import Encoder
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.finite import check_finite
from ssql.labels import check_labels
from ssql.probes import Heads, Outcome, fit_heads, most_frequent, outcome_of, scores, with_full_precision_heads
from ssql.progress import track

BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w4a4", "w2a4")
log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Quantizer:
    """How an encoder is quantized after training.

    Args:
        observer: how activation ranges are found: min_max, moving_average, percentile, mse.
        policy: per-layer bit-widths and grids; the encoder's own when None.
        bias_correction: keep each layer's mean output that of full precision (`quant.correct_bias`): what a head
            trained at full precision asks for.
    """

    observer: str = "min_max"
    policy: quant.Policy | None = None
    bias_correction: bool = False


def evaluate(
    encoders: Mapping[str, Encoder],
    data: DataModule,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    tasks: Sequence[str] | None = None,
    calibration_batches: int | Sequence[int] = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Probe frozen encoders at full precision and at each bit-width.

    Each encoder is calibrated (one shot) on the first training batches, once for each quantizer and size. Heads are
    trained on the training split and scored on every other split: metrics, intervals and `retained` as in
    `ssql.probes`. `linear` and `r2` are of heads trained on features of that bit-width (the paper's protocol),
    `linear_fp_head` and `r2_fp_head` of those trained on full-precision features.

    Args:
        encoders: method name to encoder; prepared here when it is not.
        data: labelled train and test splits.
        bit_widths: `fp`, `w8a8`, ...
        tasks: label names; all of the data's when None.
        calibration_batches: training batches that set the activation ranges; several are tried one by one.
        quantizers: name to how the encoders are quantized, min-max ranges when None.

    Returns:
        rows with the keys method, task, bit_width, metric, value, low, high, unit, retained, retained_low,
        retained_high, clips, quantizer, calibration_clips, size_bytes (weights packed at the bit-width, all else
        float32), and chance for accuracies. With several quantizers or sizes each is a method of its own: `SSQL, mse`,
        `SSQL, 64 clips`. The task of a split beside `test` is named like `digit, white 10 dB`.

    Raises:
        ValueError: unknown bit-width or task, unlabelled data, an encoder for another modality.
    """
    for bit_width in bit_widths:
        quant.parse_bit_width(bit_width)
    tasks = list(tasks or data.tasks)
    if not tasks or not set(tasks) <= set(data.tasks):
        raise ValueError(f"tasks {list(tasks)} are not all among the data's labels: {', '.join(data.tasks) or 'none'}")
    check_labels(data, tasks)
    rows: list[Row] = []
    for method, encoder in encoders.items():
        if encoder.modality != data.modality:
            raise ValueError(f"{method} is an encoder for {encoder.modality}, the data is {data.modality}")
        prepare_anew(encoder, None)
        full = Probed(_embed(encoder, data, "fp"), tasks)
        for common in quantized(method, encoder, data, bit_widths, calibration_batches, quantizers):
            bit_width = common["bit_width"]
            probed = full if bit_width == "fp" else Probed(_embed(encoder, data, bit_width), tasks, full)
            rows += [common | row for row in probed.rows(data.targets, full)]
    return rows


def quantized(
    method: str,
    encoder: Encoder,
    data: DataModule,
    bit_widths: Sequence[str],
    calibration_batches: int | Sequence[int] = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> Iterator[Row]:
    """Quantize a prepared encoder in each way and at each bit-width in turn; meanwhile it is to be measured.

    Arguments as in `evaluate`.

    Yields:
        what all rows of the measurement share: method, bit_width, quantizer, calibration_clips, size_bytes.
    """
    quantizers = quantizers or {"min_max": Quantizer()}
    sizes = [calibration_batches] if isinstance(calibration_batches, int) else list(calibration_batches)
    own = quant.policy_of(encoder)
    for name, quantizer in quantizers.items():
        policy = quantizer.policy or own
        prepare_anew(encoder, None if policy == quant.policy_of(encoder) else policy)
        for size in sizes:
            clips = min(size * data.batch_size, len(data.dataset("train")))  # type: ignore[arg-type]
            if quant.learned_bit_width(encoder) is None:
                calibrate_on(encoder, data, size, quantizer.observer)
            label = method + f", {name}" * (len(quantizers) > 1) + f", {clips} clips" * (len(sizes) > 1)
            for bit_width in sorted(bit_widths, key=lambda bits: bits != "fp"):  # fp first
                if quantizer.bias_correction and bit_width != "fp":
                    correct_bias_on(encoder, data, size, bit_width)
                common = {"method": label, "bit_width": bit_width, "quantizer": name, "calibration_clips": clips}
                yield common | {"size_bytes": round(quant.model_bytes(encoder, bit_width))}
                log.info("%s at %s done", label, bit_width)


class Features(NamedTuple):
    """Embeddings (clips, feature_dim) of a split at one bit-width, and its answers (clips,) by task."""

    embeddings: np.ndarray
    answers: dict[str, np.ndarray]


class Probed:
    """Heads and outcomes at one bit-width.

    Args:
        features: of each split.
        tasks: label names.
        full: the same at full precision; None when this is it.
    """

    def __init__(self, features: Mapping[str, Features], tasks: Sequence[str], full: "Probed | None" = None) -> None:
        self.heads: dict[str, Heads] = {}
        # By task, split and metric.
        self.outcomes: dict[tuple[str, str, str], Outcome] = {}
        train = features["train"]
        for task in tasks:
            answers = train.answers[task]
            self.heads[task] = fit_heads(train.embeddings, answers)
            tried = with_full_precision_heads(self.heads[task], (full or self).heads[task])
            for split, (embeddings, expected) in features.items():
                if split != "train" and task in expected:
                    for metric, head in tried.items():
                        outcome = outcome_of(head, embeddings, expected[task], most_frequent(answers))
                        self.outcomes[task, split, metric] = outcome

    def rows(self, units: Mapping[str, str], full: "Probed") -> Iterator[Row]:
        """Scores of all tasks, splits and metrics, against those at full precision."""
        for (task, split, metric), outcome in self.outcomes.items():
            name = task if split == "test" else f"{task}, {split}"
            for score in scores(metric, outcome, full.outcomes[task, split, metric], units.get(task, "%")):
                yield {"task": name, **score, "clips": len(outcome.loss)}


def _embed(encoder: Encoder, data: DataModule, bit_width: str) -> dict[str, Features]:
    splits = ["train", *data.test_splits]
    return {split: Features(*embed_split(encoder, data, split, bit_width)) for split in splits}


def prepare_anew(encoder: Encoder, policy: quant.Policy | None) -> None:
    """Prepare an encoder under a policy, whatever its own was; None keeps its own, or takes the default."""
    prepared = any(isinstance(module, quant.QuantLayer) for module in encoder.modules())
    if prepared and policy is not None:
        quant.unprepare(encoder)
    if not prepared or policy is not None:
        quant.prepare(encoder, policy)


def calibrate_on(encoder: Encoder, data: DataModule, batches: int, observer: str | quant.Observer = "min_max") -> None:
    """Set the activation ranges of a prepared encoder from the first training batches, not augmented."""
    looked_at = track(data.first_batches(batches), "calibrating: batches", batches)
    quant.calibrate(encoder, looked_at, _embedding_of(encoder), observer)


def correct_bias_on(encoder: Encoder, data: DataModule, batches: int, bit_width: str) -> None:
    """Correct the biases of a calibrated encoder for a bit-width from the first training batches."""
    looked_at = track(data.first_batches(batches), f"correcting biases at {bit_width}: batches", batches)
    quant.correct_bias(encoder, bit_width, looked_at, _embedding_of(encoder))


def sensitivities_on(encoder: Encoder, data: DataModule, batches: int) -> list[quant.Sensitivity]:
    """What each layer of a prepared encoder costs its embeddings at few weight bits, on the first training batches."""
    return quant.sensitivities(encoder, data.first_batches(batches), _embedding_of(encoder))


def _embedding_of(encoder: Encoder) -> Callable[[Batch], Tensor]:
    device = next(encoder.parameters()).device
    return lambda batch: encoder.embed_raw(*inputs_of(batch, device))


@torch.no_grad()
def embed_split(
    encoder: Encoder, data: DataModule, split: str, bit_width: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings and labels (clips,) of a whole split at a bit-width.

    Embeddings are (clips, feature_dim), or (clips, parts * feature_dim) where the data ask for several parts of a clip.

    Raises:
        ValueError: embeddings that are NaN or infinite.
    """
    device = next(encoder.parameters()).device
    encoder.eval()
    embeddings: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {}
    with quant.at(encoder, bit_width, reuse_weights=True):
        loader = data.evaluation_dataloader(split)
        for batch in track(loader, f"encoding {split} at {bit_width}: batches", len(loader)):
            inputs, lengths = inputs_of(batch, device)
            if data.probed_parts == 1:
                embedding = encoder.embed_raw(inputs, lengths)
            else:
                features, frames = encoder(*encoder.front_end(inputs, lengths))
                embedding = part_means(features, frames, data.probed_parts)
            embeddings.append(embedding.float().cpu())
            for task, values in batch["labels"].items():
                labels.setdefault(task, []).append(values)
    found = torch.cat(embeddings)
    check_finite(found, f"embeddings at {bit_width} of the split {split}")
    return found.numpy(), {task: torch.cat(values).numpy() for task, values in labels.items()}


def part_means(features: Tensor, lengths: Tensor, parts: int) -> Tensor:
    """Means of the frames of equal parts of each clip, side by side.

    Args:
        features: shape (batch, frames, feature_dim).
        lengths: frames of each clip, shape (batch,).
        parts: that each clip is cut into.

    Returns:
        shape (batch, parts * feature_dim).
    """
    position = torch.arange(features.shape[1], device=features.device)
    part = (position * parts // lengths.clamp_min(1)[:, None]).clamp_max(parts)  # `parts` itself is padding
    member = F.one_hot(part, parts + 1)[..., :parts].to(features.dtype)  # (batch, frames, parts)
    sums = member.transpose(1, 2) @ features
    return (sums / member.sum(dim=1).clamp_min(1)[..., None]).flatten(1)


def inputs_of(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Inputs and lengths of a batch on a device, as a front end takes them."""
    lengths = batch["lengths"]
    return batch["inputs"].to(device), None if lengths is None else lengths.to(device)
