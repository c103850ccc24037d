"""MoCo v2, and SSQL-MoCo: queries of both branches look for full-precision keys."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from encoders.base import Encoder
from quant.checks import check_above, check_at_least
from ssql.augment import Augmentation
from ssql.methods.gathering import gathered
from ssql.methods.method import Projected, SSQLOptions, View
from ssql.methods.momentum import MomentumMethod
from ssql.methods.objectives import info_nce
from ssql.methods.projectors import contrastive_projector


class MoCo(MomentumMethod):
    """MoCo v2 (Chen et al. 2020), with the SSQL branch or, with `ssql: false`, without.

    A step with SSQL is 1/2 the cross-entropy of the quantized query and 1/2 that of the full-precision query, keys
    being those of the full-precision teacher (Cao et al. 2022, code). The first view is the query, the second the
    key. Keys are not shuffled between processes: with batch norm on several GPUs take `sync_batchnorm`.

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains plain MoCo.
        dim: width of queries and keys; 128 is published.
        queue_size: keys of earlier steps that are the negatives; 4096 is SSQL's (MoCo on ImageNet: 65,536).
        temperature: 0.2 is published.
        momentum: of the teacher; 0.999 is published.
        optimizer: SGD 0.3, momentum 0.9, weight decay 1e-4 is SSQL's.
        common: see `Method`.

    Attributes:
        queue: buffer, unit vectors (queue_size, dim), oldest first, so that a resumed run finds them.
    """

    queue: Tensor

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        dim: int = 128,
        queue_size: int = 4096,
        temperature: float = 0.2,
        momentum: float | Sequence[float] = 0.999,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=1e-4),
        **common: Any,
    ) -> None:
        check_at_least(1, dim=dim, queue_size=queue_size)
        check_above(0, temperature=temperature)
        head = contrastive_projector(encoder.feature_dim, dim)
        super().__init__(encoder, augmentation, ssql, head, momentum, optimizer=optimizer, **common)
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, dim)))

    def check_run(self, trainer: Trainer, data: Any) -> None:
        """The queue must take the keys of a step."""
        super().check_run(trainer, data)
        keys = getattr(data, "largest_batch", 1) * trainer.world_size
        if keys > len(self.queue):
            raise ValueError(
                f"queue_size {len(self.queue)} does not hold the {keys} keys of one step: raise queue_size to a "
                "multiple of them or lower batch_size, or batch_seconds"
            )

    def branch(self, views: list[View]) -> Projected:
        """Queries of the first view."""
        return super().branch(views[:1])  # type: ignore[no-any-return]

    def targets(self, views: list[View], branch: Projected) -> list[Tensor]:
        """The teacher's keys of the second view."""
        return super().targets(views[1:], branch)

    def loss(self, branch: Projected, targets: list[Tensor]) -> Tensor:
        """Each query among its key and the queue."""
        # A copy: the queue moves on before the gradient is taken.
        return info_nce(branch.projections[0], targets[0], self.queue.clone(), self.temperature)

    @torch.no_grad()
    def after_step(self, targets: list[Tensor]) -> None:
        """The keys of all processes join the queue, the oldest leave it."""
        keys = F.normalize(gathered(targets[0].float()))
        self.queue.copy_(torch.cat([self.queue, keys])[len(keys) :])
