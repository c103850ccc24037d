"""What a head can learn: classes, texts by CTC, numbers. One small file each: its loss and its metrics."""

from collections.abc import Sequence

from ssql.data import DataModule
from ssql.tasks.classification import Classification
from ssql.tasks.ctc import CTC
from ssql.tasks.regression import Regression
from ssql.tasks.task import Score, Task

TEXT = "text"

__all__ = ["CTC", "Classification", "Regression", "Score", "Task", "task_of"]


def task_of(data: DataModule, names: str | Sequence[str]) -> Task:
    """The task that goes with names of the data: its classes, its numbers, or `text`.

    Args:
        data: loaded here when it is not.
        names: one name of `data.classes`; one or more of `data.targets`; or `text`, what is said.

    Raises:
        ValueError: names that the data does not have.
    """
    data.setup()
    names = [names] if isinstance(names, str) else list(names)
    if len(names) == 1 and names[0] in data.classes:
        return Classification(names[0], data.classes[names[0]])
    if names and set(names) <= data.targets.keys():
        return Regression({name: data.targets[name] for name in names})
    texts = getattr(data.dataset("train"), "texts", None)
    if names == [TEXT] and texts is not None:
        return CTC(texts)
    known = [*data.classes, *data.targets, *([TEXT] if texts is not None else [])]
    if len(names) > 1 and set(names) <= set(known):
        raise ValueError(f"several tasks at once must all be numbers to predict ({', '.join(data.targets) or 'none'})")
    raise ValueError(f"unknown task {', '.join(names)!r}; the data has: {', '.join(known) or 'no labels'}")
