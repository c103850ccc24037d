"""Fine-tuning an encoder with a task head at a bit-width, at random bits, or with adapters on a frozen base."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

import quant
from encoders import Encoder, Head, load_encoder, load_head
from ssql.augment import Augmentation
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.evaluation.calibration import calibrate_on, inputs_of, prepare_anew
from ssql.finetuning.adapters import Adapters, add_adapters, is_base, merge_adapters
from ssql.finetuning.precision import Precision, start_at, start_frozen
from ssql.finetuning.standardization import Standardization
from ssql.methods.method import View, seeded
from ssql.tasks import Score, Task, task_of
from ssql.training.batch_norm import frozen_statistics
from ssql.training.draw import draw_bit_width
from ssql.training.schedule import WARMUP, built, scheduled, total_steps

# Ranges follow the inputs of the training steps; one batch alone would make them jump.
OBSERVER = quant.MovingAverage(0.9)
# Learning rate of learned steps, in units of the encoder's: an optimizer such as Adam moves every number by about the
# learning rate, and steps are much smaller than weights.
STEP_LR = 0.1


class Finetuning(lightning.LightningModule):
    """An encoder and a head that learn one task.

    Args:
        encoder: folder of an encoder, with a head or without, or a fresh encoder.
        task: name of classes, of one or more numbers to predict, or `text`: see `ssql.tasks`.
        precision: bits and quantizer.
        freeze: only the head learns; the encoder keeps its weights and ranges.
        adapters: low-rank adapters learn on a frozen 4-bit or 8-bit base, and are merged at the end.
        optimizer: any of torch, timm or bitsandbytes (`bitsandbytes.optim.AdamW8bit`).
        augmentation: makes a random view of a batch; for `text`, one that keeps the whole of each clip.
        new_head: leave the folder's head aside.
        seed: of head, adapters, drawn bits and augmentation.
    """

    task: Task
    head: Head

    def __init__(
        self,
        encoder: Encoder | str,
        task: str | list[str],
        precision: Precision = Precision(),  # noqa: B008
        freeze: bool = False,
        adapters: Adapters | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.01),
        augmentation: Augmentation | None = None,
        new_head: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.folder_head = load_head(encoder) if isinstance(encoder, str) and not new_head else None
        self.names, self.precision, self.seed = task, precision, seed
        self.frozen, self.adapters = freeze, adapters
        self.optimizer, self.augmentation = optimizer, augmentation
        self.metrics: dict[str, MetricCollection] = {}
        self.policy_after_merge: quant.Policy | None = None
        if freeze and adapters:
            raise ValueError("freeze trains the head alone, adapters change the encoder: choose one of them")
        # The frozen base of adapters comes from the encoder's folder, not from checkpoints.
        self.strict_loading = adapters is None
        if adapters and precision.bit_width != "fp":
            raise ValueError(
                f"adapters learn on a frozen {adapters.base} base with float inputs: bit_width must be fp, "
                f"not {precision.bit_width}; test_at says where the merged encoder is tested"
            )

    def start(self, data: DataModule, calibration_batches: int) -> None:
        """Everything that needs the data: task, head, ranges, steps, adapters. Before the optimizer is built.

        Raises:
            ValueError: encoder, head, data, task or bit-width that do not go together.
            NotCalibratedError: a frozen encoder without ranges for the bit-width.
        """
        self.task = task_of(data, self.names)
        self.task.check_data(self.encoder, data)
        for split in data.evaluated_splits:
            self.task.check_split(data, split)
        with seeded(self.seed, self.device):
            self.head = self.folder_head or self.task.new_head(self.encoder, data)
            self.task.check_head(self.head)
            if self.frozen:
                start_frozen(self.encoder, self.precision)
            else:
                start_at(self.encoder, self.precision, data, calibration_batches)
            if self.adapters:
                self.policy_after_merge = quant.policy_of(self.encoder)
                add_adapters(quant.unprepare(self.encoder), self.adapters)
            if self.frozen:
                self.encoder.requires_grad_(False)
            self.train()  # an encoder comes from its folder in evaluation mode, and Lightning would leave it there
            self.standardization = Standardization.of(self._outputs(data.first_batches(calibration_batches)))
        if self.folder_head:
            self.standardization.move_out_of(self.head)

    def finish(self, data: DataModule, calibration_batches: int) -> None:
        """Let the head take features as they are, merge adapters, and find ranges where training did not.

        The encoder then runs at every bit-width it can.
        """
        self.standardization.move_into(self.head)
        if self.policy_after_merge:
            merge_adapters(self.encoder)
            prepare_anew(self.encoder, self.policy_after_merge)
            self.policy_after_merge = None
        elif self.frozen or self.precision.bit_width != "fp":
            return
        calibrate_on(self.encoder, data, calibration_batches, "mse")

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The head's answers on what the front end gives, and the frames of each clip where there are frames."""
        features, feature_lengths = self.task.outputs(self.encoder, inputs, lengths)
        return self.head(self.standardization(features)), feature_lengths

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One pass at the run's bits; for random bits a full-precision and a quantized pass, and their mean loss."""
        step = self.global_step
        with seeded(hash((self.seed, step, batch_idx, self.global_rank)) % 2**63, self.device):
            view = self._view(batch)
        if self.precision.random:
            drawn = draw_bit_width(self.seed, step)
            with self._observed():
                full_loss = self._loss(view, batch)
            with quant.at(self.encoder, drawn, reuse_weights=True), frozen_statistics(self.encoder):
                loss = (full_loss + self._loss(view, batch)) / 2
        else:
            with self._observed(), self._at(self.precision.bit_width):
                loss = self._loss(view, batch)
        if not loss.isfinite():
            raise RuntimeError(f"loss is {loss.item()} at step {step}: lower the learning rate or lengthen the warm-up")
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Metrics at every validated bit-width."""
        self._measure(batch, self.precision.validate_at)

    def on_validation_epoch_end(self) -> None:
        """Log `val_<metric>`, its mean over the bit-widths, which chooses the best checkpoint."""
        scores = self.take_scores()
        quality = [self.task.quality(found) for found in scores.values()]
        self.log(self.monitored, sum(quality) / len(quality), prog_bar=True)
        for bit_width, found in scores.items():
            self.log_dict({f"val/{score.task}/{score.metric}/{bit_width}": score.value for score in found})

    def take_saved(self, folder: Path) -> None:
        """Go on with the encoder and head of a folder, float32, as whoever loads it has them; the run's are dropped."""
        device, head = self.device, load_head(folder)
        assert head is not None
        self.encoder, self.head = load_encoder(folder).to(device), head.to(device)

    @torch.no_grad()
    def test_on(self, batches: Iterable[Batch]) -> None:
        """Metrics at every tested bit-width; not in the precision that the run trained in."""
        self.eval()
        for batch in batches:
            self._measure(move_data_to_device(batch, self.device), self.precision.tests)

    @property
    def monitored(self) -> str:
        """Name of the logged metric that chooses the best checkpoint."""
        return f"val_{self.task.metric}"

    def take_scores(self) -> dict[str, list[Score]]:
        """Scores by bit-width of what was measured since the last call."""
        metrics, self.metrics = self.metrics, {}
        return {bit_width: self.task.scores(found) for bit_width, found in metrics.items()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One group each for encoder, learned steps and head, with a linear warm-up and a cosine to zero."""
        named: dict[str, list[nn.Parameter]] = {"encoder": [], "steps": [], "head": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = "head" if name.startswith("head.") else "steps" if name.endswith("_step") else "encoder"
                named[kind].append(parameter)
        groups: list[dict[str, Any]] = [{"params": found, "name": name} for name, found in named.items() if found]
        optimizer = built(self.optimizer, groups)
        for group in optimizer.param_groups:
            if group["name"] == "steps":
                group["lr"] *= STEP_LR
                group["weight_decay"] = 0.0
        total = total_steps(self.trainer)
        return scheduled(optimizer, round(WARMUP * total), total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base of adapters out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not is_base(key)}

    def train(self, mode: bool = True) -> "Finetuning":
        """A frozen encoder stays in evaluation mode: its running statistics do not move."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @torch.no_grad()
    def _outputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the head takes of batches that are not augmented, at the run's bits."""
        bit_width = "fp" if self.precision.random else self.precision.bit_width
        with self._at(bit_width), frozen_statistics(self.encoder):
            for batch in batches:
                yield self.task.outputs(self.encoder, *self.encoder.front_end(*inputs_of(batch, self.device)))

    def _loss(self, view: View, batch: Batch) -> Tensor:
        outputs, lengths = self(*view)
        return self.task.loss(outputs, lengths, batch)

    def _view(self, batch: Batch) -> View:
        inputs, lengths = batch["inputs"], batch["lengths"]
        view: View = (
            self.encoder.front_end(inputs, lengths)
            if self.augmentation is None
            else self.augmentation(inputs, lengths, self.encoder)
        )
        return view

    def _at(self, bit_width: str) -> AbstractContextManager[Any]:
        # A base with adapters is not prepared, and runs in full precision only.
        return nullcontext() if self.policy_after_merge else quant.at(self.encoder, bit_width, reuse_weights=True)

    def _observed(self) -> AbstractContextManager[Any]:
        """The run's own inputs move the ranges that it will have in its next step."""
        follows = self.precision.quantizer == "min_max" and self.precision.bit_width != "fp"
        return quant.observe(self.encoder, OBSERVER) if follows and not self.frozen else nullcontext()

    def _measure(self, batch: Batch, bit_widths: list[str]) -> None:
        view = self.encoder.front_end(batch["inputs"], batch["lengths"])
        for bit_width in bit_widths:
            metrics = self.metrics.setdefault(bit_width, self.task.metrics().to(self.device))
            with self._at(bit_width):
                outputs, lengths = self(*view)
            metrics.update(*self.task.answers(outputs, lengths, batch))
