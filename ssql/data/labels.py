"""Labels that a probe can learn from and be measured by, looked at before the encoder runs over all clips."""

from collections.abc import Sequence

import numpy as np

from ssql.data import DataModule
from ssql.data.batch import in_memory


def check_labels(data: DataModule, tasks: Sequence[str]) -> None:
    """Raise where a task cannot be learned from the training split, or not be measured on another split.

    Args:
        data: splits that are made on the fly are not looked at.
        tasks: names among the data's classes and targets.

    Raises:
        ValueError: a split without items, a single class in training, a number to predict that is not finite, or the
            same for every item that it is measured on; the sentence names task and split.
    """
    splits = {split: data.dataset(split) for split in ("train", *data.test_splits)}  # an empty one is said first
    for split, dataset in splits.items():
        held = in_memory(dataset)
        for task in tasks:
            if held is None or task not in held.labels:
                continue
            answers = np.asarray(held.labels[task])
            if task in data.targets:
                check_numbers(task, split, answers, None if split == "train" else data.targets[task])
            elif split == "train" and len(np.unique(answers)) == 1:
                name = data.classes[task][int(answers[0])]
                raise ValueError(
                    f"all {len(answers)} training items have the same {task}, {name!r}: there is nothing to tell "
                    f"apart; give items of two classes or more, or leave {task} out of the tasks"
                )


def check_numbers(task: str, split: str, answers: np.ndarray, unit: str | None) -> None:
    """Raise ValueError where a number to predict, of answers (items,), is NaN or infinite, or never changes.

    It may stay the same where no unit is given.
    """
    wrong = np.flatnonzero(~np.isfinite(answers))
    if len(wrong):
        where = int(wrong[0])
        raise ValueError(f"{task} of item {where} of the {split} split is {answers[where]}: give a finite number")
    if unit is not None and np.ptp(answers) == 0:
        raise ValueError(
            f"{task} is {answers[0]:g} {unit} in all {len(answers)} items of the {split} split: R2, error over "
            f"variance, has no meaning there; give items that differ, or leave {task} out of the tasks"
        )
