"""Batch norms in training: whose statistics they take, and when these move."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import Trainer
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import nn


@contextmanager
def frozen_statistics(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Inside, batch norms in training mode neither move their running statistics nor count the batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if active else []
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    spare = next((torch.zeros_like(count) for _, count in before if count is not None), None)
    # Not track_running_stats: a recomputed pass must hand autograd the same tensors, the running statistics too.
    for norm, (_, count) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else spare
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's plugin: in training, batch norms take the statistics of all processes' batches.

    `ssql pretrain --trainer.sync_batchnorm true` has it; in Python give `plugins=[SyncBatchNorms()]` to the trainer.
    Lightning's own is torch's conversion, which loses the activations that timm's batch norms of MobileNets and
    EfficientNets have inside. Layers keep their identity, names and Parameters, both ways.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronize every batch norm, in place."""
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
                # In the instance's own attributes, for `revert`.
                norm.form_alone, norm.process_group = type(norm), None  # type: ignore[assignment]
                norm.__class__ = SyncBatchNormAct if isinstance(norm, BatchNormAct2d) else nn.SyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """The way back, in place."""
        for norm in model.modules():
            if isinstance(norm, nn.SyncBatchNorm) and "form_alone" in vars(norm):
                norm.__class__ = vars(norm).pop("form_alone")
                del norm.process_group
        return model


def layer_sync(trainer: Trainer) -> TorchSyncBatchNorm | None:
    """What synchronizes the batch norms of a run; None where nothing does."""
    return getattr(trainer.strategy, "_layer_sync", None)


def check_synchronized(trainer: Trainer, model: nn.Module) -> None:
    """Whether batch norms can be synchronized where a trainer is told to.

    Raises:
        ValueError: processes on CPUs, or a conversion that would lose activations.
    """
    sync = layer_sync(trainer)
    if sync is None or trainer.world_size == 1:
        return
    if trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "sync_batchnorm needs GPUs, torch's SyncBatchNorm has no form for CPUs: leave it off, each process then "
            "takes the statistics of its own batch"
        )
    if not isinstance(sync, SyncBatchNorms) and any(isinstance(part, BatchNormAct2d) for part in model.modules()):
        raise ValueError(
            "torch's conversion to SyncBatchNorm loses the activations inside timm's BatchNormAct2d: give the trainer "
            "plugins=[ssql.training.batch_norm.SyncBatchNorms()]"
        )
