"""What a frozen encoder still knows at each bit-width: probes of its quantized features, quantizers side by side."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import quant
from encoders import weights_sha256
from encoders.encoder import Encoder
from quant.observers import OBSERVERS
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.finite import check_finite
from ssql.labels import check_labels
from ssql.probes import Heads, Outcome, fit_heads, most_frequent, outcome_of, scores, with_full_precision_heads
from ssql.progress import track

BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w4a4", "w2a4")
AS_SAVED = "as_saved"
log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Quantizer:
    """How an encoder is quantized while it is measured.

    Args:
        observer: `as_saved`, the encoder as it is: its own policy, ranges, learned steps and bias corrections, which
            is what is exported. Or how new activation ranges are found: min_max, moving_average, percentile, mse.
        policy: of new ranges: per-layer bit-widths and grids; the encoder's own when None.
        bias_correction: of new ranges: keep each layer's mean output that of full precision (`quant.correct_bias`),
            which a head trained at full precision asks for.

    Raises:
        ValueError: an unknown observer, or `as_saved` with a policy or bias correction of its own.
    """

    observer: str = AS_SAVED
    policy: quant.Policy | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if not self.as_saved and self.observer not in OBSERVERS:
            raise ValueError(f"unknown observer {self.observer!r}: write one of {AS_SAVED}, {', '.join(OBSERVERS)}")
        if self.as_saved and (self.policy or self.bias_correction):
            raise ValueError(
                "a quantizer with a policy or bias correction needs an observer that finds ranges anew (min_max, "
                "moving_average, percentile, mse): as_saved changes nothing"
            )

    @property
    def as_saved(self) -> bool:
        """Whether nothing is changed."""
        return self.observer == AS_SAVED


class ExportedFile(Protocol):
    """An exported file, as the command line hands one in (`export.FileEncoder`): it runs at one bit-width, as it is.

    Called with waveforms or pixels and lengths, it gives features (batch, frames, feature_dim) and the frames of each
    clip; of images, pooled features and None.
    """

    modality: Any
    bit_width: str
    weights_sha256: str

    @property
    def file_sha256(self) -> str:
        """Hash of the file."""

    @property
    def size_bytes(self) -> int:
        """Of the file."""

    def __call__(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features, and frames of each clip."""

    def embed_raw(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim)."""


def evaluate(
    encoders: Mapping[str, Encoder | ExportedFile],
    data: DataModule,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    tasks: Sequence[str] | None = None,
    calibration_batches: int | Sequence[int] = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Probe frozen encoders at full precision and at each bit-width.

    Encoders are measured as they are, and left so; with quantizers that calibrate, copies that share their weights are
    (one shot, on the first training batches). Heads are trained on the training split and scored on every other
    split: metrics, intervals and `retained` as in `ssql.probes`. `linear` and `r2` are of heads trained on features of
    that bit-width (the paper's protocol), `linear_fp_head` and `r2_fp_head` of those trained on full-precision
    features. An exported file is measured at its own bit-width, whatever else is asked; it has heads of full precision
    to compare with where its encoder, or a file of that at `fp`, is among the encoders.

    Args:
        encoders: method name to encoder, or to an exported file.
        data: labelled train and test splits.
        bit_widths: `fp`, `w8a8`, ...
        tasks: label names; all of the data's when None.
        calibration_batches: training batches that set the ranges of quantizers that calibrate; several are tried one
            by one.
        quantizers: name to how the encoders are quantized; as saved when None.

    Returns:
        rows with the keys method, task, bit_width, metric, value, low, high, unit, retained, retained_low,
        retained_high, clips, quantizer, calibration_clips (None: as saved), weights_sha256 (of what was measured),
        size_bytes (weights packed at the bit-width, all else float32; of a file, its own), file_sha256 (of files), and
        chance for accuracies. With several
        quantizers or sizes each is a method of its own: `SSQL, mse`, `SSQL, 64 clips`. The task of a split beside
        `test` is named like `digit, white 10 dB`.

    Raises:
        ValueError: unknown bit-width or task, unlabelled data, an encoder for another modality.
        quant.NotCalibratedError: an encoder that cannot run at one of the bit-widths as it is.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    tasks = list(tasks or data.tasks)
    if not tasks or not set(tasks) <= set(data.tasks):
        raise ValueError(f"tasks {list(tasks)} are not all among the data's labels: {', '.join(data.tasks) or 'none'}")
    check_labels(data, tasks)
    for method, encoder in encoders.items():
        check_measurable(method, encoder, data, bit_widths, quantizers)
    rows: list[Row] = []
    # At full precision, by the hash of the weights.
    known: dict[str, Probed] = {}
    for method, encoder in encoders.items():
        if not isinstance(encoder, Encoder):
            continue
        full = Probed(_embed(in_full_precision(encoder), data, "fp"), tasks)
        known[weights_sha256(encoder)] = full
        for variant, common in quantized(method, encoder, data, bit_widths, calibration_batches, quantizers):
            bit_width = common["bit_width"]
            probed = full if bit_width == "fp" else Probed(_embed(variant, data, bit_width), tasks, full)
            rows += [common | row for row in probed.rows(data.targets, full)]
    files = {method: file for method, file in encoders.items() if not isinstance(file, Encoder)}
    for method, file in sorted(files.items(), key=lambda item: item[1].bit_width != "fp"):
        rows += _file_rows(method, file, data, tasks, known)
    return rows


def _file_rows(
    method: str, file: ExportedFile, data: DataModule, tasks: Sequence[str], known: dict[str, "Probed"]
) -> list[Row]:
    """Rows of one file; at full precision it becomes `known`."""
    full = known.get(file.weights_sha256)
    probed = Probed(_embed_file(file, data), tasks, full)
    if file.bit_width == "fp":
        full = known.setdefault(file.weights_sha256, probed)
    common: Row = {"method": method, "bit_width": file.bit_width, "quantizer": AS_SAVED, "calibration_clips": None}
    common |= {"weights_sha256": file.weights_sha256, "size_bytes": file.size_bytes, "file_sha256": file.file_sha256}
    log.info("%s (file) at %s done", method, file.bit_width)
    if full is not None:
        return [common | row for row in probed.rows(data.targets, full)]
    rows = [common | row for row in probed.rows(data.targets, probed) if not row["metric"].endswith("_fp_head")]
    return [{key: value for key, value in row.items() if not key.startswith("retained")} for row in rows]


def check_measurable(
    method: str,
    encoder: Encoder | ExportedFile,
    data: DataModule,
    bit_widths: Sequence[str],
    quantizers: Mapping[str, Quantizer],
) -> None:
    """Say before anything is measured that an encoder cannot be, in a sentence that says what would be right.

    Raises:
        ValueError: an unknown bit-width, or an encoder for another modality.
        quant.NotCalibratedError: as it is, the encoder does not run at a bit-width.
    """
    runs = [quant.parse_bit_width(bit_width) for bit_width in bit_widths]
    if encoder.modality != data.modality:
        raise ValueError(f"{method} is an encoder for {encoder.modality}, the data is {data.modality}")
    if not isinstance(encoder, Encoder) or not any(quantizer.as_saved for quantizer in quantizers.values()):
        return
    for run in runs:
        if run == quant.FULL_PRECISION:
            continue
        if not _is_prepared(encoder):
            reason = "it was never calibrated"
        else:
            try:
                with quant.at(encoder, run):
                    continue
            except (ValueError, quant.NotCalibratedError) as error:
                reason = str(error).split(": run quant.calibrate")[0]
        raise quant.NotCalibratedError(
            f"{method} cannot be measured as saved at {run}: {reason}; give it ranges with ssql calibrate, leave {run} "
            'out of --bit_widths, or name a quantizer: --quantizers \'{"min_max": {"observer": "min_max"}}\''
        )


def quantized(
    method: str,
    encoder: Encoder,
    data: DataModule,
    bit_widths: Sequence[str],
    calibration_batches: int | Sequence[int] = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> Iterator[tuple[Encoder, Row]]:
    """An encoder in each way and at each bit-width in turn; it is left as it is.

    Arguments as in `evaluate`.

    Yields:
        the encoder to measure, which shares the weights, and what all rows of the measurement have in common: method,
        bit_width, quantizer, calibration_clips, weights_sha256, size_bytes.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    sizes = [calibration_batches] if isinstance(calibration_batches, int) else list(calibration_batches)
    own_sha256 = weights_sha256(encoder)
    for name, quantizer in quantizers.items():
        for size in [None] if quantizer.as_saved else sizes:
            if size is None:
                variant, clips = in_full_precision(encoder), None
            else:
                variant = _recalibrated(encoder, data, size, quantizer)
                clips = min(size * data.batch_size, len(data.dataset("train")))  # type: ignore[arg-type]
            label = method + f", {name}" * (len(quantizers) > 1)
            label += f", {clips} clips" * (size is not None and len(sizes) > 1)
            for bit_width in sorted(bit_widths, key=lambda bits: bits != "fp"):  # fp first
                if size is not None and quantizer.bias_correction and bit_width != "fp":
                    correct_bias_on(variant, data, size, bit_width)
                common = {"method": label, "bit_width": bit_width, "quantizer": name, "calibration_clips": clips}
                common["weights_sha256"] = own_sha256 if size is None else weights_sha256(variant)
                yield variant, common | {"size_bytes": round(quant.model_bytes(variant, bit_width))}
                log.info("%s at %s done", label, bit_width)


def in_full_precision(encoder: Encoder) -> Encoder:
    """The encoder itself where it is prepared; else a copy that is, sharing its weights: it runs at `fp`."""
    return encoder if _is_prepared(encoder) else quant.prepare(_sharing_weights(encoder))


def _recalibrated(encoder: Encoder, data: DataModule, batches: int, quantizer: Quantizer) -> Encoder:
    """A copy that shares the weights, with new ranges; learned steps and bias corrections are left behind."""
    variant = _sharing_weights(encoder)
    policy = quantizer.policy
    if _is_prepared(variant):
        policy = policy or quant.policy_of(variant)
        quant.unprepare(variant)
    calibrate_on(quant.prepare(variant, policy), data, batches, quantizer.observer)
    return variant


def _sharing_weights(encoder: Encoder) -> Encoder:
    """A copy with ranges, running statistics and mode of its own, but the very Parameters."""
    return copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})


def _is_prepared(encoder: Encoder) -> bool:
    return any(isinstance(module, quant.QuantLayer) for module in encoder.modules())


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


def _embed_file(file: ExportedFile, data: DataModule) -> dict[str, Features]:
    def embed(inputs: Tensor, lengths: Tensor | None) -> Tensor:
        return _file_embedding(file, data, inputs, lengths)

    cpu = torch.device("cpu")
    splits = ["train", *data.test_splits]
    return {split: Features(*_collected(embed, data, split, file.bit_width, cpu)) for split in splits}


def _file_embedding(file: ExportedFile, data: DataModule, inputs: Tensor, lengths: Tensor | None) -> Tensor:
    if data.probed_parts == 1:
        return file.embed_raw(inputs, lengths)
    features, frames = file(inputs, lengths)
    assert frames is not None
    return part_means(features, frames, data.probed_parts)


def prepare_anew(encoder: Encoder, policy: quant.Policy | None) -> None:
    """Prepare an encoder under a policy, whatever its own was; None keeps its own, or takes the default."""
    prepared = _is_prepared(encoder)
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
    encoder.eval()

    def embed(inputs: Tensor, lengths: Tensor | None) -> Tensor:
        if data.probed_parts == 1:
            return encoder.embed_raw(inputs, lengths)
        features, frames = encoder(*encoder.front_end(inputs, lengths))
        return part_means(features, frames, data.probed_parts)

    with quant.at(encoder, bit_width, reuse_weights=True):
        return _collected(embed, data, split, bit_width, next(encoder.parameters()).device)


def _collected(
    embed: Callable[[Tensor, Tensor | None], Tensor], data: DataModule, split: str, bit_width: str, device: torch.device
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What `embed` gives of a whole split, and its labels."""
    embeddings: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {}
    loader = data.evaluation_dataloader(split)
    for batch in track(loader, f"encoding {split} at {bit_width}: batches", len(loader)):
        embeddings.append(embed(*inputs_of(batch, device)).float().cpu())
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
