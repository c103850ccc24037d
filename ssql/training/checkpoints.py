"""Checkpoints to go on from: of a run in good health only, or on the right side of a validation."""

import signal
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from ssql.terminal.interruption import Interrupted, Interruption
from ssql.training.checkpoint_files import NEW, rotate


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every so many steps and at the end of each epoch; the one before it stays as `previous.ckpt`.

    A checkpoint between an epoch's last step and its validation would resume without that validation: another
    checkpoint could then be the best. A signal ends the run here: after a step, with a checkpoint.

    Args:
        folder: of the checkpoints.
        steps: from checkpoint to checkpoint within an epoch.
        interruption: tells whether a signal has come.
    """

    def __init__(self, folder: Path, steps: int, interruption: Interruption) -> None:
        self.folder, self.steps, self.interruption = folder, steps, interruption
        self.saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        self.saved_step = trainer.global_step
        self.interruption.install()
        self.interruption.deferred = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every so many steps, but for the last of an epoch."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and batch_idx + 1 != trainer.num_training_batches:
            self._end_of_step(trainer, pl_module, trainer.global_step % self.steps == 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of each epoch."""
        self._end_of_step(trainer, pl_module, True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run's last step, whatever its number; from here on a signal ends the command at once."""
        self.interruption.deferred = False
        self._end_of_step(trainer, pl_module, True)

    def may_save(self, module: LightningModule) -> bool:
        """Whether the present state is worth going on from."""
        return True

    def _end_of_step(self, trainer: Trainer, module: LightningModule, due: bool) -> None:
        number = self.interruption.signal_number
        stop = number is not None
        if trainer.world_size > 1:  # all processes stop after the same step, whichever of them got the signal
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        healthy = self.may_save(module)
        if healthy and (due or stop) and trainer.global_step != self.saved_step:
            self.save(trainer)
        if stop:
            raise Interrupted(number or signal.SIGTERM)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint and let it be the last."""
        trainer.save_checkpoint(self.folder / NEW, weights_only=False)
        if trainer.is_global_zero:
            rotate(self.folder)
        trainer.strategy.barrier()
        self.saved_step = trainer.global_step


class HealthyCheckpoint(LastCheckpoint):
    """Writes nothing while a collapse is suspected, and nothing at the end of an epoch: pretraining has no validation.

    A run bounded by steps would resume from the end of an epoch with that epoch's order once more.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every so many steps."""
        last = batch_idx + 1 == trainer.num_training_batches
        if last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._end_of_step(trainer, pl_module, trainer.global_step % self.steps == 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing."""

    def may_save(self, module: Any) -> bool:
        """Whether embeddings still spread."""
        module.health.settle()
        return bool(module.health.suspicious_steps == 0)


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that finds its files again in a run's folder that was moved or is named otherwise."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Files are looked for in the present folder."""
        paths = {key: self._here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")}
        scores = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": scores, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path
