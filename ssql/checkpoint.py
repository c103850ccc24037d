"""Checkpoints to go on from: of a run in good health only, or on the right side of a validation."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint


class HealthyCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that writes nothing while a collapse is suspected: the last checkpoint is a good one."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Every so many steps."""
        if _healthy(pl_module):
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every so many epochs."""
        if _healthy(pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of a run that has written none."""
        if _healthy(pl_module):
            super().on_train_end(trainer, pl_module)


class LastCheckpoint(Checkpoint):
    """Writes one file every so many steps, and at the end of each epoch after its validation.

    A checkpoint between an epoch's last step and its validation would resume without that validation: another
    checkpoint could then be the best.

    Args:
        path: of the file, replaced each time.
        steps: from checkpoint to checkpoint within an epoch.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every so many steps, but for the last of an epoch."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == trainer.num_training_batches
        if stepped and not last and trainer.global_step % self.steps == 0:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of each epoch."""
        trainer.save_checkpoint(self.path)


def _healthy(module: Any) -> bool:
    module.health.settle()
    return module.health.suspicious_steps == 0
