"""The learning rate over a run."""

import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """A linear warm-up, then a cosine to zero that would have begun with the first step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * step / total_steps))

    return LambdaLR(optimizer, factor)


def scheduled(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> OptimizerLRScheduler:
    """An optimizer with `warmup_cosine`, moved on at every step, as Lightning takes it."""
    schedule = warmup_cosine(optimizer, warmup_steps, total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of a run.

    The trainer's own estimate makes the training loader, and where it is asked a checkpoint is not restored yet: that
    loader would not know which batches a resumed epoch has had. A data module of ours is asked instead.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "batches_per_epoch"):
        return max(1, int(trainer.estimated_stepping_batches))
    limit, batches = trainer.limit_train_batches, data.batches_per_epoch(trainer.world_size)
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
    by_epochs = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or -1)
    bounds = [bound for bound in (trainer.max_steps, by_epochs) if bound > 0]
    return min(bounds, default=1)
