"""A linear probe as a head: what scikit-learn fitted on standardized features becomes one linear layer."""

import copy
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from torch import Tensor

from encoders import Head
from encoders.base import Encoder
from ssql.data import DataModule
from ssql.data.labels import check_labels
from ssql.evaluation.calibration import prepare_anew
from ssql.evaluation.embeddings import embed_split
from ssql.evaluation.probes import fit_heads
from ssql.tasks import task_of

log = logging.getLogger(__name__)


def probe_head(encoder: Encoder, data: DataModule, task: str, bit_width: str) -> Head:
    """Fit the probe of `ssql evaluate` on the training split's features at a bit-width.

    Args:
        encoder: frozen; left untouched.
        data: labelled.
        task: name of a class or a number to predict.
        bit_width: of the features.

    Raises:
        ValueError: the data has no such task, or is for another kind of encoder.
    """
    if data.modality != encoder.modality:
        raise ValueError(f"the encoder is for {encoder.modality}, the data is {data.modality}")
    check_task(data, task)
    check_labels(data, [task])
    log.info("training a linear probe of %s at %s", task, bit_width)
    encoder = copy.deepcopy(encoder)
    prepare_anew(encoder, None)
    embeddings, answers = embed_split(encoder, data, "train", bit_width)
    heads = fit_heads(embeddings, answers[task])
    if task in data.targets:
        return head_of(heads["r2"], [task], task, [data.targets[task]])
    return head_of(heads["linear"], data.classes[task], task)


def head_of(probe: Pipeline, names: Sequence[str], label: str, units: Sequence[str] | None = None) -> Head:
    """The head that gives a fitted probe's answers: standardization is folded into weight and bias.

    Args:
        probe: StandardScaler, then LogisticRegression or a ridge regression.
        names: of all classes in label order, of which the head keeps those that training had; or of the targets.
        label: name of what is predicted.
        units: of the targets.
    """
    scaler, linear = probe[0], probe[-1]
    weight = np.atleast_2d(linear.coef_) / scaler.scale_
    bias = np.atleast_1d(linear.intercept_) - weight @ scaler.mean_
    if isinstance(linear, LogisticRegression):
        names = [names[index] for index in linear.classes_]
        if len(names) == 2:  # one row, the second class's log odds
            weight, bias = np.vstack([0 * weight, weight]), np.append(0, bias)
    head = Head("classification" if units is None else "regression", weight.shape[1], names, units, label)
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(weight))
        head.linear.bias.copy_(torch.from_numpy(bias))
    return head.eval()


def labelled_test(data: DataModule, head: Head) -> Iterator[tuple[Tensor, Tensor | None, list[str]]]:
    """Test batches: inputs, lengths, and the right class or text of each clip.

    Raises:
        ValueError: the data does not have the head's label.
    """
    batches = data.evaluation_dataloader("test")
    if head.task == "ctc":
        task_of(data, head.label)  # says what the data has where it has no texts
        return ((batch["inputs"], batch["lengths"], batch["texts"]) for batch in batches)
    check_task(data, head.label)
    names = data.classes[head.label]
    return (
        (batch["inputs"], batch["lengths"], [names[label] for label in batch["labels"][head.label].tolist()])
        for batch in batches
    )


def check_task(data: DataModule, task: str) -> None:
    """Raise ValueError where the data has no such label."""
    if task not in data.tasks:
        raise ValueError(f"task {task!r} is not among the data's labels: {', '.join(data.tasks) or 'none'}")
