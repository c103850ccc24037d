"""SimSiam, and SSQL-SimSiam: the quantized branch predicts the full-precision features beside it."""

from typing import Any

from torch import Tensor

import quant
from encoders.base import Encoder
from quant.checks import check_at_least
from ssql.augment import Augmentation
from ssql.methods.method import Method, Projected, SSQLOptions
from ssql.methods.objectives import symmetric_negative_cosine
from ssql.methods.projectors import PROJECTOR_POLICY, predictor, projector


class SimSiam(Method):
    """SimSiam (Chen & He, CVPR 2021), with the SSQL branch or, with `ssql: false`, without.

    Loss of a step with SSQL (Cao et al. 2022, Sec. 3.2; targets are always full precision):
    L = -1/4 [cos(p1, sg z2) + cos(p2, sg z1) + cos(p1q, sg z2) + cos(p2q, sg z1)].

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains plain SimSiam.
        dim: width of projector and predictor; 2048 is published.
        common: see `Method`; its defaults are SSQL's recipe on CIFAR.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        dim: int = 2048,
        **common: Any,
    ) -> None:
        check_at_least(1, dim=dim)
        super().__init__(encoder, augmentation, ssql, **common)
        self.projector = quant.prepare(projector(encoder.feature_dim, dim), PROJECTOR_POLICY)
        self.predictor = predictor(dim)

    def loss(self, branch: Projected, targets: list[Tensor]) -> Tensor:
        """Each view's prediction against the other view's target."""
        return symmetric_negative_cosine(branch.predictions, targets)
