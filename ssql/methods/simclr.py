"""SimCLR, and SSQL-SimCLR: quantized anchors look for the full-precision features of their other view."""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

import quant
from encoders.base import Encoder
from quant.checks import check_above, check_at_least
from ssql.augment import Augmentation
from ssql.methods.gathering import gathered, rank
from ssql.methods.method import Method, Projected, SSQLOptions
from ssql.methods.objectives import nt_xent
from ssql.methods.projectors import PROJECTOR_POLICY, contrastive_projector


class SimCLR(Method):
    """SimCLR (Chen et al., ICML 2020), with the SSQL branch or, with `ssql: false`, without.

    A step with SSQL is 1/2 the loss of the full-precision features and 1/2 that of quantized anchors against
    full-precision candidates behind a stop-gradient; an anchor's own image at full precision is no candidate.
    (The published code has no SimCLR form; this one follows its MoCo.) Negatives come from all processes.

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains plain SimCLR.
        dim: width of the features compared; 128 is published.
        temperature: 0.5 is published for CIFAR (Appendix B.9) and SSQL's.
        optimizer: SGD 0.5, momentum 0.9, weight decay 1e-4 is SSQL's baseline.
        common: see `Method`.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        dim: int = 128,
        temperature: float = 0.5,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=1e-4),
        **common: Any,
    ) -> None:
        check_at_least(1, dim=dim)
        check_above(0, temperature=temperature)
        super().__init__(encoder, augmentation, ssql, optimizer=optimizer, **common)
        self.projector = quant.prepare(contrastive_projector(encoder.feature_dim, dim), PROJECTOR_POLICY)
        self.temperature = temperature

    def check_run(self, trainer: Trainer, data: Any) -> None:
        """Without a second item there are no negatives."""
        super().check_run(trainer, data)
        if getattr(data, "batch_size", 2) * trainer.world_size < 2:
            raise ValueError("SimCLR takes its negatives from the batch: batch_size must be at least 2")

    def loss(self, branch: Projected, targets: list[Tensor]) -> Tensor:
        """Each projection's other view among the targets of all processes."""
        candidates = [gathered(target) for target in targets]
        return nt_xent(branch.projections, candidates, self.temperature, first=rank() * len(targets[0]))
