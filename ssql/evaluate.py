"""What a frozen encoder still knows at each bit-width: linear probe and kNN on its quantized features."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import quant
from encoders.encoder import Encoder
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.data.module import Split

BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w4a4", "w2a4")
log = logging.getLogger(__name__)

Row = dict[str, Any]
# Task to its linear head and the values of its metrics.
Probes = dict[str, tuple[Pipeline, dict[str, float]]]


@dataclass(frozen=True)
class Quantizer:
    """How an encoder is quantized after training.

    Args:
        observer: how activation ranges are found: min_max, moving_average, percentile, mse.
        policy: per-layer bit-widths and grids; the encoder's own when None.
    """

    observer: str = "min_max"
    policy: quant.Policy | None = None


def evaluate(
    encoders: Mapping[str, Encoder],
    data: DataModule,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    tasks: Sequence[str] | None = None,
    calibration_batches: int = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Probe frozen encoders at full precision and at each bit-width.

    Each encoder is calibrated (one shot) on the first training batches. Three metrics, all accuracy in percent
    on the test split:
    `linear`: a float linear head trained on features of that bit-width (the paper's protocol);
    `linear_fp_head`: the head trained on full-precision features, then the encoder quantized;
    `knn`: 10 nearest neighbours by cosine, weighted by distance.

    Args:
        encoders: method name to encoder; prepared here when it is not.
        data: labelled train and test splits.
        bit_widths: `fp`, `w8a8`, ...
        tasks: label names; all of the data's when None.
        calibration_batches: training batches that set the activation ranges.
        quantizers: name to how the encoders are quantized, min-max ranges when None; with several, each is a
            method of its own in the rows: `SSQL, mse`.

    Returns:
        rows with the keys method, task, bit_width, metric, value, clips, quantizer.

    Raises:
        ValueError: unknown bit-width or task, unlabelled data, an encoder for another modality.
    """
    for bit_width in bit_widths:
        quant.parse_bit_width(bit_width)
    data.setup()
    tasks = list(tasks or data.classes)
    if not tasks or not set(tasks) <= data.classes.keys():
        raise ValueError(
            f"tasks {list(tasks)} are not all among the data's labels: {', '.join(data.classes) or 'none'}"
        )
    quantizers = quantizers or {"min_max": Quantizer()}
    clips = len(data.dataset("test"))  # type: ignore[arg-type]
    rows: list[Row] = []
    for method, encoder in encoders.items():
        if encoder.modality != data.modality:
            raise ValueError(f"{method} is an encoder for {encoder.modality}, the data is {data.modality}")
        full: Probes = {}
        for name, quantizer in quantizers.items():
            prepare_anew(encoder, quantizer.policy)
            full = full or _probe(_embed(encoder, data, "fp"), tasks)
            if quant.learned_bit_width(encoder) is None:
                calibrate_on(encoder, data, calibration_batches, quantizer.observer)
            label = f"{method}, {name}" if len(quantizers) > 1 else method
            for bit_width in sorted(bit_widths, key=lambda bits: bits != "fp"):  # fp first
                probes = full if bit_width == "fp" else _probe(_embed(encoder, data, bit_width), tasks, full)
                rows += [
                    {"method": label, "task": task, "bit_width": bit_width, "metric": metric, "value": value,
                     "clips": clips, "quantizer": name}
                    for task, (_, metrics) in probes.items()
                    for metric, value in metrics.items()
                ]  # fmt: skip
                log.info("%s at %s done", label, bit_width)
    return rows


def prepare_anew(encoder: Encoder, policy: quant.Policy | None) -> None:
    """Prepare an encoder under a policy, whatever its own was; None keeps its own, or takes the default."""
    prepared = any(isinstance(module, quant.QuantLayer) for module in encoder.modules())
    if prepared and policy is not None:
        quant.unprepare(encoder)
    if not prepared or policy is not None:
        quant.prepare(encoder, policy)


def calibrate_on(encoder: Encoder, data: DataModule, batches: int, observer: str = "min_max") -> None:
    """Set the activation ranges of a prepared encoder from the first training batches, not augmented."""
    quant.calibrate(encoder, _first_batches(data, batches), _embedding_of(encoder), observer)


def sensitivities_on(encoder: Encoder, data: DataModule, batches: int) -> list[quant.Sensitivity]:
    """What each layer of a prepared encoder costs its embeddings at few weight bits, on the first training batches."""
    return quant.sensitivities(encoder, _first_batches(data, batches), _embedding_of(encoder))


def _first_batches(data: DataModule, count: int) -> Iterator[Batch]:
    loader = data.evaluation_dataloader("train")
    return (batch for _, batch in zip(range(count), loader, strict=False))


def _embedding_of(encoder: Encoder) -> Callable[[Batch], Tensor]:
    device = next(encoder.parameters()).device
    return lambda batch: encoder.embed_raw(*_inputs(batch, device))


@torch.no_grad()
def embed_split(
    encoder: Encoder, data: DataModule, split: Split, bit_width: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embeddings (clips, feature_dim) and labels (clips,) of a whole split at a bit-width."""
    device = next(encoder.parameters()).device
    encoder.eval()
    embeddings: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {}
    with quant.at(encoder, bit_width, reuse_weights=True):
        for batch in data.evaluation_dataloader(split):
            embeddings.append(encoder.embed_raw(*_inputs(batch, device)).float().cpu())
            for task, values in batch["labels"].items():
                labels.setdefault(task, []).append(values)
    return torch.cat(embeddings).numpy(), {task: torch.cat(values).numpy() for task, values in labels.items()}


def _inputs(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor | None]:
    lengths = batch["lengths"]
    return batch["inputs"].to(device), None if lengths is None else lengths.to(device)


class Features(NamedTuple):
    """Embeddings (clips, feature_dim) and labels (clips,) by task of both splits at one bit-width."""

    train: np.ndarray
    train_labels: dict[str, np.ndarray]
    test: np.ndarray
    test_labels: dict[str, np.ndarray]


def _embed(encoder: Encoder, data: DataModule, bit_width: str) -> Features:
    return Features(*embed_split(encoder, data, "train", bit_width), *embed_split(encoder, data, "test", bit_width))


def _probe(features: Features, tasks: Sequence[str], full: Probes | None = None) -> Probes:
    """Each task's linear head on these features, and its metrics; `full` are those at full precision."""
    probes: Probes = {}
    for task in tasks:
        train, train_labels = features.train, features.train_labels[task]
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=1.0, tol=1e-3))
        linear.fit(train, train_labels)
        knn = KNeighborsClassifier(min(10, len(train)), metric="cosine", weights="distance", algorithm="brute")
        knn.fit(train, train_labels)
        heads = {"linear": linear, "linear_fp_head": full[task][0] if full else linear, "knn": knn}
        scores = {name: head.score(features.test, features.test_labels[task]) for name, head in heads.items()}
        probes[task] = linear, {name: 100 * float(score) for name, score in scores.items()}
    return probes
