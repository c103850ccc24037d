"""SimSiam, and SSQL-SimSiam: the quantized branch predicts the full-precision features beside it."""

from typing import Literal, NamedTuple

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

import quant
from encoders.encoder import Encoder
from ssql.heads import predictor, projector
from ssql.methods.method import Method, SSQLOptions, View, default_optimizer
from ssql.objectives import symmetric_negative_cosine

PROJECTOR_POLICY = quant.Policy(first_layer="w8a32", layers={"*": "w8a32"})


class Siamese(NamedTuple):
    """Projections z and predictions p of both views, each (batch, dim)."""

    projections: list[Tensor]
    predictions: list[Tensor]


class SimSiam(Method):
    """SimSiam (Chen & He, CVPR 2021), with the SSQL branch or, with `ssql: false`, without.

    Loss of a step with SSQL (Cao et al. 2022, Sec. 3.2; targets are always full precision):
    L = -1/4 [cos(p1, sg z2) + cos(p2, sg z1) + cos(p1q, sg z2) + cos(p2q, sg z1)].

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains plain SimSiam.
        policy: per-layer bit-widths of the encoder.
        dim: width of projector and predictor; 2048 is published.
        optimizer: any torch, timm or bitsandbytes optimizer; SGD 0.05, momentum 0.9, weight decay 5e-4 is published.
        warmup_steps: linear warm-up before the cosine to zero; 0 is published.
        seed: of bit-widths and augmentations.
        views: both views of a branch in one batch (`together`), or one after the other (`apart`, as published).
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: nn.Module,
        ssql: SSQLOptions | bool = True,
        policy: quant.Policy | None = None,
        dim: int = 2048,
        optimizer: OptimizerCallable = default_optimizer,
        warmup_steps: int = 0,
        seed: int = 0,
        views: Literal["together", "apart"] = "together",
    ) -> None:
        super().__init__(encoder, augmentation, ssql, policy, optimizer, warmup_steps, seed, views)
        self.projector = quant.prepare(projector(encoder.feature_dim, dim), PROJECTOR_POLICY)
        self.predictor = predictor(dim)

    def branch(self, views: list[View]) -> Siamese:
        """Both views through encoder, projector and predictor."""
        return Siamese(*self.through(views, self.projector, self.predictor))

    def targets(self, views: list[View], branch: Siamese) -> list[Tensor]:
        """The projections."""
        return branch.projections

    def loss(self, branch: Siamese, targets: list[Tensor]) -> Tensor:
        """Each view's prediction against the other view's target."""
        return symmetric_negative_cosine(branch.predictions, targets)

    def embeddings(self, branch: Siamese) -> Tensor:
        """Projections of the first view."""
        return branch.projections[0]
