"""The training step all methods share: a full-precision pass and, with SSQL, a quantized pass at random bits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import lightning
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import quant
from encoders.base import Encoder
from quant.checks import check_at_least
from ssql.augment import Augmentation
from ssql.methods.gathering import mean_over_ranks
from ssql.methods.health import Health
from ssql.methods.loss_units import LossUnits
from ssql.methods.objectives import feature_std, relative_distance
from ssql.training.batch_norm import check_synchronized, frozen_statistics, layer_sync
from ssql.training.draw import draw_among, draw_bit_width
from ssql.training.gradients import differentiated_now
from ssql.training.schedule import built, scheduled, total_steps
from ssql.training.sharding import check_knows_shards, shard

View = tuple[Tensor, Tensor | None]


@dataclass
class SSQLOptions:
    """The quantized branch (Cao et al., ECCV 2022); the defaults are the published method.

    Args:
        weight_bits: smallest and largest weight bit-width drawn; published 2 to 8.
        activation_bits: smallest and largest activation bit-width drawn; published 4 to 8.
        bit_widths: those that the encoder is to run at, such as [w8a8, w4a8, w2a8]; one of them is drawn, and
            weight_bits and activation_bits are not looked at.
        draw: `separate` draws the bits of weights and of activations independently; `same` draws one number that both
            take, held within activation_bits; `sandwich` takes the coarsest of bit_widths and, if there are more, one
            of the others, so that a step has a full-precision and two quantized passes.
        draw_every: a new draw each optimizer `step` (the batches accumulated for one share it), or each `epoch`.
        auxiliary_loss: train the full-precision branch by its own loss beside the quantized one; without it
            the full-precision branch only gives targets.
        targets: precision of the features to be predicted; `quantized` is the reversed form of the ablation, where
            both branches predict quantized features, and a momentum teacher gives its own at the drawn bit-width.
        batch_norm_statistics: passes that update running statistics. `full_precision` keeps them
            clean; `all` is the reference's behaviour, where the quantized pass has the last word.
        sequential: differentiate the full-precision branch before the quantized pass begins, so that the
            activations of one branch at a time are kept: same gradients, about half the memory.
        observer: how a step finds activation ranges in its full-precision pass; `min_max` of this step alone is
            published, `moving_average` over the steps is the ablation's momentum-updated range.
        consistency: weight of a term that is not in the paper: the squared distance of the quantized encoder's
            features to the full-precision ones of the same view, in units of their variance over the batch. The
            published loss compares behind projector and predictor, whose batch norms absorb what a linear head on
            the features would notice.
        learn_scales: each of bit_widths learns the scales of its weights and its biases beside the one copy of the
            weights (`quant.learn_bit_widths`); the encoder that is saved has them.
        learn_offsets: each of bit_widths also learns what is added to each weight before it is rounded; beginning, with
            `encoders.init_from` and its `quantized`, with the integers of `ssql quantize`.
        freeze_weights: only what bit-widths have of their own is learned. The encoder in full precision stays what it
            was, and its pass only gives targets; bit-widths that are not named keep the integers of `ssql quantize`.
        own_lr: learning rate of what bit-widths have of their own, instead of the optimizer's: offsets are in steps,
            scales in eighths of the first ones, biases in halves of the noise of rounding. One for all, or one for
            each of bit_widths, as {w4a8: 0.003, w2a8: 0.02}: what is coarse bears more.
        loss_units: `as_is`, or `running_mean`: the loss of full precision and of each of bit_widths is divided by its
            own running mean, so that those of few bits do not drown the others.
    """

    weight_bits: Sequence[int] = (2, 8)
    activation_bits: Sequence[int] = (4, 8)
    bit_widths: Sequence[str] | None = None
    draw: Literal["separate", "same", "sandwich"] = "separate"
    draw_every: Literal["step", "epoch"] = "step"
    auxiliary_loss: bool = True
    targets: Literal["full_precision", "quantized"] = "full_precision"
    batch_norm_statistics: Literal["full_precision", "all"] = "full_precision"
    sequential: bool = True
    observer: Literal["min_max", "moving_average", "mse"] = "min_max"
    consistency: float = 0.0
    learn_scales: bool = False
    learn_offsets: bool = False
    freeze_weights: bool = False
    own_lr: float | dict[str, float] = 0.01
    loss_units: Literal["as_is", "running_mean"] = "as_is"

    def __post_init__(self) -> None:
        if self.bit_widths is not None:
            _check_bit_widths(self.runs)
        named = {"draw sandwich": self.draw == "sandwich", "learn_scales true": self.learn_scales,
                 "loss_units running_mean": self.loss_units == "running_mean"}  # fmt: skip
        for option in [option for option, asked in named.items() if asked and self.bit_widths is None]:
            raise ValueError(f"{option} needs ssql.bit_widths, such as [w8a8, w4a8, w2a8]")
        for name in ("weight_bits", "activation_bits"):
            bounds = list(getattr(self, name))
            if len(bounds) != 2 or not 2 <= bounds[0] <= bounds[1] <= 8:
                raise ValueError(f"{name} must be two numbers from 2 to 8, smallest first; got {bounds}")
        if self.learn_offsets and not self.learn_scales:
            raise ValueError("learn_offsets true needs ssql.learn_scales true: offsets are of bit-widths that learn")
        if self.freeze_weights and not self.learn_scales:
            raise ValueError("freeze_weights true needs ssql.learn_scales true: nothing else would learn")
        own_lr = list(self.own_lr.values()) if isinstance(self.own_lr, dict) else self.own_lr
        check_at_least(0, consistency=self.consistency, own_lr=own_lr)
        _check_named(self.own_rates, self.runs)
        if self.targets == "quantized" and (self.draw == "sandwich" or self.loss_units == "running_mean"):
            raise ValueError("targets quantized goes with one quantized pass, and losses as they are")
        if self.targets == "quantized" and not self.auxiliary_loss:
            raise ValueError(
                "targets quantized needs auxiliary_loss true: without it no branch would be left to predict them"
            )

    @property
    def runs(self) -> list[quant.BitWidth]:
        """The bit-widths that were named."""
        return [quant.parse_bit_width(each) for each in self.bit_widths or ()]

    @property
    def own_rates(self) -> dict[quant.BitWidth, float]:
        """Learning rates of what the bit-widths have of their own."""
        if not isinstance(self.own_lr, dict):
            return dict.fromkeys(self.runs, self.own_lr)
        return {quant.parse_bit_width(name): rate for name, rate in self.own_lr.items()}


def _check_bit_widths(runs: Sequence[quant.BitWidth]) -> None:
    if not runs:
        raise ValueError("bit_widths must name one bit-width or more, such as [w8a8, w4a8]")
    if quant.FULL_PRECISION in runs:
        raise ValueError("bit_widths are those of the quantized passes: leave fp out, every step has a pass of it")
    twice = [str(run) for run in runs if runs.count(run) > 1]
    if twice:
        raise ValueError(f"bit_widths names {twice[0]} twice")


def _check_named(rates: Mapping[quant.BitWidth, float], runs: Sequence[quant.BitWidth]) -> None:
    for missing in [run for run in runs if run not in rates]:
        raise ValueError(f"own_lr gives no rate for {missing}: give one number, or one for each of bit_widths")
    for unknown in [run for run in rates if run not in runs]:
        raise ValueError(f"own_lr gives a rate for {unknown}, which is none of bit_widths")


class Projected(NamedTuple):
    """Features of the encoder, projections z and, with a predictor, predictions p of each view, each (batch, dim)."""

    features: list[Tensor]
    projections: list[Tensor]
    predictions: list[Tensor] = []


class Method(lightning.LightningModule):
    """Base of the methods: what varies is the views, how a branch is computed, its targets and its loss.

    A step with SSQL (Cao et al. 2022, Sec. 3.2): both branches predict the targets of the full-precision
    branch (or of a full-precision teacher), and the loss is the mean of theirs.

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains the plain method.
        policy: per-layer bit-widths of the encoder.
        optimizer: any of torch, timm (`timm.optim.Lars`) or bitsandbytes (`bitsandbytes.optim.AdamW8bit`); SGD 0.05,
            momentum 0.9, weight decay 5e-4 is SSQL's on CIFAR.
        warmup_steps: linear warm-up before the cosine to zero; 0 is published.
        seed: of bit-widths and augmentations.
        views: both views of a branch in one batch (`together`), or one after the other (`apart`, as published).
    """

    projector: nn.Module
    predictor: nn.Module

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        policy: quant.Policy | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        warmup_steps: int = 0,
        seed: int = 0,
        views: Literal["together", "apart"] = "together",
    ) -> None:
        super().__init__()
        if type(self).loss is Method.loss:
            raise TypeError(f"{type(self).__name__} is only what others are made from: name one of them")
        check_at_least(0, warmup_steps=warmup_steps)
        if quant.is_prepared(encoder) and policy is not None:
            raise ValueError("an encoder that is quantized already keeps its own policy: leave policy out")
        self.encoder = encoder if quant.is_prepared(encoder) else quant.prepare(encoder, policy)
        self.augmentation = augmentation
        self.ssql = SSQLOptions() if ssql is True else ssql or None
        runs = [] if self.ssql is None else self.ssql.runs
        by_mean = self.ssql is not None and self.ssql.loss_units == "running_mean"
        self.loss_units = LossUnits([str(run) for run in (quant.FULL_PRECISION, *runs)] if by_mean else [])
        if self.ssql is not None and self.ssql.learn_scales:
            if self.keeps_ranges:
                _check_quantized(self.encoder, runs)
            quant.learn_bit_widths(self.encoder, runs, self.ssql.learn_offsets, self.keeps_ranges)
        self.seed, self.together = seed, views == "together"
        self.optimizer, self.warmup_steps = optimizer, warmup_steps
        self.total_steps = 1
        self.health = Health()

    @property
    def keeps_ranges(self) -> bool:
        """Whether activation ranges stay what the encoder came with, because its weights do."""
        return self.ssql is not None and self.ssql.freeze_weights

    def branch(self, views: Any) -> Any:
        """One pass of the student over the views; what `targets` and `loss` need of it.

        Where a method does not say otherwise: through encoder, projector and, if there is one, predictor.
        """
        stages = [self.projector, *([self.predictor] if hasattr(self, "predictor") else [])]
        return Projected(*self.through(views, *stages))

    def targets(self, views: Any, branch: Any) -> list[Tensor]:
        """What is to be predicted, from the views and the branch that gives targets: its projections by default."""
        projections: list[Tensor] = branch.projections
        return projections

    def loss(self, branch: Any, targets: list[Tensor]) -> Tensor:
        """Self-supervised loss of a branch against targets, shape ()."""
        raise NotImplementedError

    def embeddings(self, branch: Any) -> Tensor:
        """Embeddings (count, dim) of a branch that show a collapse: projections of the first view."""
        first: Tensor = branch.projections[0]
        return first

    def features(self, branch: Any) -> Tensor:
        """Features (count, feature_dim) of the encoder in a branch, in an order of their own."""
        return torch.cat(branch.features)

    def after_step(self, targets: list[Tensor]) -> None:
        """Called with the detached targets at the end of every training step."""

    def after_update(self) -> None:
        """Called after every optimizer step: a momentum teacher follows here."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Views, full-precision pass, random bit-width, quantized pass against the targets."""
        moment = self.global_step
        if self._trainer is not None and self.trainer.accumulate_grad_batches > 1:
            moment = self.trainer.fit_loop.total_batch_idx  # global_step stands still between optimizer steps
        # Torch's generators are a function of (seed, step, rank): a resumed run draws the same.
        with seeded(hash((self.seed, moment, self.global_rank)) % 2**63, self.device):
            views = self.random_views(batch)
        loss, targets, logs = self._plain_step(views) if self.ssql is None else self._ssql_step(views, self.ssql)
        watched = {"loss": loss.detach()} | {name: value for name, value in logs.items() if not name.endswith("_bits")}
        values = torch.stack([value.float() for value in watched.values()])
        self.health.watch(self.global_step, list(watched), mean_over_ranks(values))
        self.after_step(targets)
        self.log("loss", loss.detach(), prog_bar=True)
        self.log_dict({name: value.float() for name, value in logs.items()}, prog_bar=False)
        return loss

    def random_views(self, batch: dict[str, Any]) -> Any:
        """What a step learns from: two random views of a batch."""
        return [self.augmentation(batch["inputs"], batch["lengths"], self.encoder) for _ in range(2)]

    def _plain_step(self, views: Any) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        branch = self.branch(views)
        targets = self.targets(views, branch)
        loss = self.loss(branch, targets)
        return loss, _detached(targets), self._logs(branch, loss)

    def _ssql_step(self, views: Any, ssql: SSQLOptions) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        bit_widths = self._bit_widths(ssql)
        reversed_targets = ssql.targets == "quantized"
        differentiate = ssql.sequential and not reversed_targets
        known = bit_widths[0] if len(bit_widths) == 1 else None
        observation = nullcontext() if self.keeps_ranges else quant.observe(self, ssql.observer, known)
        auxiliary = ssql.auxiliary_loss and not ssql.freeze_weights
        with observation, nullcontext() if auxiliary else torch.no_grad():
            branch = self.branch(views)
            targets = self.targets(views, branch)
            full_loss = self.loss(branch, targets)
        logs = self._logs(branch, full_loss)
        features = self.features(branch).detach()
        full_term = self.loss_units("fp", full_loss)
        if auxiliary and differentiate:
            full_term = differentiated_now(full_term, self.parameters())
            del branch
        targets = _detached(targets)

        clean = ssql.batch_norm_statistics == "full_precision"
        passes = len(bit_widths) + auxiliary
        losses, gaps, terms = [], [], []
        for bit_width in bit_widths:
            with quant.at(self, bit_width, reuse_weights=True), frozen_statistics(self, clean):
                quantized = self.branch(views)
                if reversed_targets:
                    targets = self.targets(views, quantized)
                quantized_loss = self.loss(quantized, targets)
            gap = relative_distance(self.features(quantized), features)
            term = self.loss_units(str(bit_width), quantized_loss) / passes
            if ssql.consistency:
                term = term + ssql.consistency * gap / len(bit_widths)
            if differentiate and len(bit_widths) > 1:
                term = differentiated_now(term, self.parameters())
            losses.append(quantized_loss.detach())
            gaps.append(gap.detach())
            terms.append(term)
        if reversed_targets:
            targets = _detached(targets)
            full_loss = full_term = self.loss(branch, targets)
            logs["loss_fp"] = full_loss.detach()
        if auxiliary:
            terms.append(full_term / passes)
        loss = torch.stack(terms).sum()
        logs["loss_quantized"] = torch.stack(losses).mean()
        logs["feature_gap"] = torch.stack(gaps).mean()
        if ssql.runs:
            logs |= {f"loss_{bit_width}": each for bit_width, each in zip(bit_widths, losses, strict=True)}
        logs["weight_bits"] = torch.tensor(bit_widths[0].weight)
        logs["activation_bits"] = torch.tensor(bit_widths[0].activation)
        return loss, targets, logs

    def _bit_widths(self, ssql: SSQLOptions) -> list[quant.BitWidth]:
        """Of the step's quantized passes."""
        moment = self.global_step if ssql.draw_every == "step" else self.current_epoch
        if ssql.runs:
            return draw_among(self.seed, moment, ssql.runs, ssql.draw == "sandwich")
        return [draw_bit_width(self.seed, moment, ssql.weight_bits, ssql.activation_bits, ssql.draw == "same")]

    def _logs(self, branch: Any, loss: Tensor) -> dict[str, Tensor]:
        return {"loss_fp": loss.detach(), "feature_std": feature_std(self.embeddings(branch))}

    def setup(self, stage: str) -> None:
        """Refuse a run that cannot work before its first step."""
        self.check_run(self.trainer, getattr(self.trainer, "datamodule", None))

    def check_run(self, trainer: Trainer, data: Any) -> None:
        """Whether trainer and data fit the method; subclasses add their own conditions.

        Args:
            trainer: of the run.
            data: data module with `modality` and `batch_size`, or None.

        Raises:
            ValueError: what does not fit, and what would.
        """
        modality = getattr(data, "modality", self.encoder.modality)
        if modality != self.encoder.modality:
            raise ValueError(
                f"{type(data).__name__} gives {modality}, but the {self.encoder.name} encoder takes "
                f"{self.encoder.modality}: choose another encoder or other data"
            )
        check_synchronized(trainer, self)
        if self.ssql is not None and self.ssql.learn_scales:
            _check_finds_unused(trainer)
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError("strategy fsdp, torch's first FSDP, is not supported: use strategy fsdp2")
        if self.ssql is None or not self.ssql.sequential:
            return
        if trainer.precision in ("16-mixed", 16):
            raise ValueError(
                "precision 16-mixed scales the loss only after ssql.sequential has differentiated half of it: "
                "use bf16-mixed, or ssql.sequential false"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f"ssql.sequential differentiates inside the step, which {type(trainer.strategy).__name__} does not "
                "allow: use strategy ddp or fsdp2, or ssql.sequential false"
            )

    def configure_model(self) -> None:
        """Shard the weights where the strategy is FSDP's."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self.encoder, FSDPModule):
            mesh = self.device_mesh
            assert mesh is not None
            if mesh["tensor_parallel"].size() > 1:
                raise ValueError(
                    f"layers are not split over {mesh['tensor_parallel'].size()} processes: use strategy fsdp2, or "
                    "ModelParallelStrategy with tensor_parallel_size 1"
                )
            sync = layer_sync(self.trainer)
            if sync is not None:  # other strategies do it themselves
                sync.apply(self)
            shard(self, mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a linear warm-up and a cosine to zero over the whole run."""
        own = {id(each) for each in quant.own_parameters(self.encoder)}
        shared = [each for each in self.parameters() if each.requires_grad and id(each) not in own]
        groups: list[dict[str, Any]] = [{"params": shared}] if shared else []
        if own and self.ssql is not None:
            for run, rate in self.ssql.own_rates.items():
                found = quant.own_parameters(self.encoder, run)
                groups.append({"params": found, "lr": rate, "weight_decay": 0.0})
        optimizer = built(self.optimizer, groups)
        if isinstance(self.encoder, FSDPModule):
            check_knows_shards(optimizer)
        self.total_steps = total_steps(self.trainer)
        return scheduled(optimizer, self.warmup_steps, self.total_steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer step, then `after_update`."""
        super().optimizer_step(*args, **kwargs)
        self.after_update()

    def through(
        self, views: list[View], *stages: Callable[[Tensor], Tensor], encoder: Encoder | None = None
    ) -> list[list[Tensor]]:
        """Embeddings of the views through stages one after the other, views together or apart.

        Args:
            views: of one batch.
            stages: projector, predictor, ...
            encoder: the student's own when None.

        Returns:
            the embeddings, then for each stage its outputs: a list for each, of (batch, dim) for each view.
        """
        groups = [join(views)] if self.together else views
        parts = len(views) // len(groups)
        outputs: list[list[Tensor]] = [[] for _ in range(1 + len(stages))]
        for group in groups:
            x = (encoder or self.encoder).embed(*group)
            outputs[0] += x.chunk(parts)
            for stage, output in zip(stages, outputs[1:], strict=True):
                x = stage(x)
                output += x.chunk(parts)
        return outputs

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop a run that is lost."""
        self.health.settle()


def join(views: list[View]) -> View:
    """Views of one batch as one batch; clips are padded with zeros to the longest.

    Args:
        views: inputs (batch, ..., time) with lengths (batch,), or images with lengths None.
    """
    inputs, lengths = zip(*views, strict=True)
    if lengths[0] is None:
        return torch.cat(inputs), None
    longest = max(view.shape[-1] for view in inputs)
    padded = [F.pad(view, (0, longest - view.shape[-1])) for view in inputs]
    return torch.cat(padded), torch.cat([length for length in lengths if length is not None])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators start from `seed`; outside they go on as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _check_quantized(encoder: Encoder, runs: Sequence[quant.BitWidth]) -> None:
    """Raise ValueError where frozen weights have no ranges yet."""
    try:
        for run in runs:
            with quant.at(encoder, run):
                pass
    except quant.NotCalibratedError as problem:
        raise ValueError(
            "ssql.freeze_weights true keeps the ranges that the encoder comes with, and it has none: take a folder of "
            "ssql quantize, with encoders.init_from and quantized true"
        ) from problem


def _check_finds_unused(trainer: Trainer) -> None:
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise ValueError(
            "ssql.learn_scales leaves bit-widths that a step does not draw without gradients, for which strategy ddp "
            "would wait: use strategy ddp_find_unused_parameters_true"
        )


def _detached(targets: list[Tensor]) -> list[Tensor]:
    return [target.detach() for target in targets]
