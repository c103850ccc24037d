"""What a frozen encoder still knows at each bit-width: probes of its quantized features, quantizers side by side."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

import quant
from encoders import weights_sha256
from encoders.base import Encoder
from ssql.data import DataModule
from ssql.data.labels import check_labels
from ssql.evaluation.embeddings import ExportedFile, Features, embed_splits
from ssql.evaluation.probes import (
    Heads,
    Outcome,
    fit_heads,
    most_frequent,
    outcome_of,
    scores,
    with_full_precision_heads,
)
from ssql.evaluation.quantizers import AS_SAVED, Quantizer, Row, in_full_precision, quantized

# What the rows of an exported file tell of it.
OF_FILES = ("weights_sha256", "size_bytes", "file_sha256", "runtime", "precision")
BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w4a4", "w2a4")
log = logging.getLogger(__name__)


def evaluate(
    encoders: Mapping[str, Encoder | ExportedFile],
    data: DataModule,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    tasks: Sequence[str] | None = None,
    calibration_batches: int = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Probe frozen encoders at full precision and at each bit-width.

    Encoders are measured as they are, and left so; with quantizers that calibrate, copies that share their weights are
    (one shot, on the first training batches). Heads are trained on the training split and scored on every other split:
    metrics, intervals and `retained` as in `ssql.evaluation.probes`. `linear` and `r2` are of heads trained on features
    of that bit-width (the paper's protocol), `linear_fp_head` and `r2_fp_head` of those trained on full-precision
    features. An exported file is measured at its own bit-width, whatever else is asked; it has heads of full precision
    to compare with where its encoder, or a file of that at `fp`, is among the encoders.

    Args:
        encoders: method name to encoder, or to an exported file.
        data: labelled train and test splits.
        bit_widths: `fp`, `w8a8`, ...
        tasks: label names; all of the data's when None.
        calibration_batches: training batches that set the ranges of quantizers that calibrate.
        quantizers: name to how the encoders are quantized; as saved when None.

    Returns:
        rows with the keys method, task, bit_width, metric, value, low, high, unit, retained, retained_low,
        retained_high, clips, quantizer, calibration_clips (None: as saved), weights_sha256 (of what was measured),
        size_bytes (weights packed at the bit-width, all else float32; of a file, its own), of files file_sha256,
        runtime and precision (of what is not on integers), and chance for accuracies. With several quantizers each is a
        method of its own: `SSQL, mse`. The task of a split beside `test` is named like `digit, white 10 dB`.

    Raises:
        ValueError: unknown bit-width or task, unlabelled data, an encoder for another modality.
        quant.NotCalibratedError: an encoder that cannot run at one of the bit-widths as it is.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    tasks = list(tasks or data.tasks)
    if not data.tasks:
        raise ValueError("the data have no labels that a probe could learn: give some, or read texts with a --reader")
    if not set(tasks) <= set(data.tasks):
        raise ValueError(f"tasks {list(tasks)} are not all among the data's labels: {', '.join(data.tasks)}")
    check_labels(data, tasks)
    for method, encoder in encoders.items():
        check_measurable(method, encoder, data, bit_widths, quantizers)
    rows: list[Row] = []
    # At full precision, by the hash of the weights.
    known: dict[str, Probed] = {}
    for method, encoder in encoders.items():
        if not isinstance(encoder, Encoder):
            continue
        full = Probed(embed_splits(in_full_precision(encoder), data, "fp"), tasks)
        known[weights_sha256(encoder)] = full
        for variant, common in quantized(method, encoder, data, bit_widths, calibration_batches, quantizers):
            bit_width = common["bit_width"]
            probed = full if bit_width == "fp" else Probed(embed_splits(variant, data, bit_width), tasks, full)
            rows += [common | row for row in probed.rows(data.targets, full)]
    files = {method: file for method, file in encoders.items() if not isinstance(file, Encoder)}
    for method, file in sorted(files.items(), key=lambda item: item[1].bit_width != "fp"):
        known_full = known.get(file.weights_sha256)
        probed = Probed(embed_splits(file, data, file.bit_width), tasks, known_full)
        if file.bit_width == "fp":
            known_full = known.setdefault(file.weights_sha256, probed)
        common = {"method": method, "bit_width": file.bit_width, "quantizer": AS_SAVED, "calibration_clips": None}
        common |= {name: getattr(file, name) for name in OF_FILES}
        log.info("%s (file) at %s done", method, file.bit_width)
        for row in probed.rows(data.targets, known_full or probed):
            if known_full is not None:
                rows.append(common | row)
            elif not row["metric"].endswith("_fp_head"):  # nothing to compare with
                rows.append(common | {key: value for key, value in row.items() if not key.startswith("retained")})
    return rows


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
        if not quant.is_prepared(encoder):
            reason = "it was never calibrated"
        else:
            try:
                with quant.at(encoder, run):
                    continue
            except (ValueError, quant.NotCalibratedError) as error:
                reason = str(error).split(": run quant.calibrate")[0]
        raise quant.NotCalibratedError(
            f"{method} cannot be measured as saved at {run}: {reason}; give it ranges with ssql quantize, leave {run} "
            'out of --bit_widths, or name a quantizer: --quantizers \'{"min_max": {"observer": "min_max"}}\''
        )


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
            if full is None:
                _say_unseen(task, features)
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


def _say_unseen(task: str, features: Mapping[str, Features]) -> None:
    """Warn of classes that only test splits have, as where each class is one recording: no probe can know them."""
    answers = features["train"].answers[task]
    if np.issubdtype(answers.dtype, np.floating):
        return
    for split, (_, expected) in features.items():
        if task in expected and (unseen := ~np.isin(expected[task], answers)).any():
            log.warning(
                "%d of %d clips of the split %s have a class of the task %s that no training clip has, and no probe "
                "can know it: give more recordings of each class",
                unseen.sum(), len(unseen), split, task,
            )  # fmt: skip
