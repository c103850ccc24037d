"""What BYOL, MoCo and masked prediction share: a teacher that follows the student's weights."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import quant
from encoders.base import Encoder
from ssql.augment import Augmentation
from ssql.methods.method import Method, SSQLOptions
from ssql.methods.projectors import PROJECTOR_POLICY


class Teacher(nn.Module):
    """Copy of an encoder and a projector that gets no gradient and follows their weights."""

    encoder: Encoder
    projector: nn.Module

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = copy.deepcopy((encoder, projector))
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, encoder: Encoder, projector: nn.Module, momentum: float) -> None:
        """Every weight becomes momentum * itself + (1 - momentum) * the student's."""
        student = [*encoder.parameters(), *projector.parameters()]
        get_ema_multi_avg_fn(momentum)(list(self.parameters()), student, 0)


class MomentumMethod(Method):
    """Base of the methods with a momentum teacher.

    The teacher is in full precision, as published; with `ssql.targets: quantized` it is a prepared copy, whose
    ranges are observed and which runs at the drawn bit-width with the student's quantized branch. Batch norms of
    the teacher take the statistics of its own batches.

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch, or whether there is one.
        projector: prepared here at 8-bit weights; an identity where the method has none.
        momentum: of the teacher; [start, end] rises on a cosine over the run (BYOL, Grill et al. 2020, Sec. 3.3).
        common: see `Method`.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool,
        projector: nn.Module,
        momentum: float | Sequence[float],
        **common: Any,
    ) -> None:
        ends = [momentum, momentum] if isinstance(momentum, float | int) else list(momentum)
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(f"momentum must be one number from 0 to 1, or [start, end] that rises; got {momentum}")
        teacher = Teacher(encoder, projector)
        super().__init__(encoder, augmentation, ssql, **common)
        self.projector = projector if isinstance(projector, nn.Identity) else quant.prepare(projector, PROJECTOR_POLICY)
        if self.ssql is not None and self.ssql.targets == "quantized":
            teacher = Teacher(self.encoder, self.projector)
        self.teacher = teacher
        self.momentum = ends

    @torch.no_grad()
    def targets(self, views: Any, branch: Any) -> list[Tensor]:
        """The teacher's projections of the views, each (batch, dim)."""
        return self.through(views, self.teacher.projector, encoder=self.teacher.encoder)[1]

    def after_update(self) -> None:
        """The teacher follows."""
        self.teacher.follow(self.encoder, self.projector, self.momentum_at(self.global_step))

    def momentum_at(self, step: int) -> float:
        """Momentum after an optimizer step."""
        start, end = self.momentum
        return end - (end - start) * (math.cos(math.pi * min(1, step / self.total_steps)) + 1) / 2
