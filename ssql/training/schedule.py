"""The learning rate over a run: it needs to know the run's last step."""

import logging
import math
from collections.abc import Iterable
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

WARMUP = 0.1  # share of a run of fine-tuning, or of a tokenizer's, in which the learning rate rises
log = logging.getLogger(__name__)


def built(optimizer: OptimizerCallable, parameters: Iterable[Any]) -> Optimizer:
    """An optimizer of parameters or groups.

    Raises:
        ValueError: settings that it does not take, such as a negative learning rate.
    """
    try:
        return optimizer(parameters)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the optimizer cannot be built: {error}") from error


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """A linear warm-up, then a cosine to zero that would have begun with the first step; zero from then on."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * min(1, step / total_steps)))

    return LambdaLR(optimizer, factor)


def scheduled(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> OptimizerLRScheduler:
    """An optimizer with `warmup_cosine`, moved on at every step, as Lightning takes it.

    Raises:
        ValueError: a learning rate or weight decay that is negative, NaN or infinite.
    """
    for group in optimizer.param_groups:
        for name in ("lr", "weight_decay"):
            value = float(group.get(name, 0))
            if not 0 <= value < math.inf:
                of = f" of the group {group['name']}" if "name" in group else ""
                raise ValueError(f"the optimizer's {name}{of} must be 0 or more, got {value:g}")
    if warmup_steps > total_steps:
        log.warning("the warm-up of %d steps is longer than the run of %d", warmup_steps, total_steps)
    schedule = warmup_cosine(optimizer, warmup_steps, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of a run.

    The trainer's own estimate makes the training loader, and where it is asked a checkpoint is not restored yet: that
    loader would not know which batches a resumed epoch has had. A data module of ours is asked instead.

    Raises:
        ValueError: a run whose last step is not known.
    """
    check_ends(trainer.max_steps, trainer.max_epochs)
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "batches_per_epoch"):
        return max(1, int(trainer.estimated_stepping_batches))
    limit, batches = trainer.limit_train_batches, data.batches_per_epoch(trainer.world_size)
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
    by_epochs = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or -1)
    bounds = [bound for bound in (trainer.max_steps, by_epochs) if bound > 0]
    return min(bounds, default=1)


def check_ends(max_steps: int, max_epochs: int | None) -> None:
    """Raise ValueError for a run without a last step, whose learning rate would have no cosine.

    `max_time` alone ends a run that nobody knows the length of: it may stop one that has a last step sooner.
    """
    if max_steps == -1 and max_epochs == -1:
        raise ValueError(
            "the learning rate falls to zero over the whole run, whose last step is not known: give "
            "--trainer.max_steps or --trainer.max_epochs (beside --trainer.max_time, which may stop it sooner)"
        )
