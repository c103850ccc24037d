"""Checkpoints of a run in good health only."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


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


def _healthy(module: Any) -> bool:
    module.health.settle()
    return module.health.suspicious_steps == 0
