"""BYOL, and SSQL-BYOL: both branches predict the features of a full-precision momentum teacher."""

from collections.abc import Sequence
from typing import Any

from encoders.base import Encoder
from quant.checks import check_at_least
from ssql.augment import Augmentation
from ssql.methods.method import SSQLOptions
from ssql.methods.momentum import MomentumMethod
from ssql.methods.projectors import predictor, projector
from ssql.methods.simsiam import SimSiam


class BYOL(MomentumMethod):
    """BYOL (Grill et al., NeurIPS 2020), with the SSQL branch or, with `ssql: false`, without.

    Loss of a step with SSQL (Cao et al. 2022 and its code; z are the teacher's projections):
    L = -1/4 [cos(p1, z2) + cos(p2, z1) + cos(p1q, z2) + cos(p2q, z1)].

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains plain BYOL.
        dim: width of projector and predictor; 2048 is SSQL's (BYOL: 4096 wide, 256 out).
        momentum: of the teacher; 0.99 is SSQL's; [0.996, 1.0] is BYOL's, rising on a cosine over the run.
        common: see `Method`; its defaults are SSQL's recipe on CIFAR.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        dim: int = 2048,
        momentum: float | Sequence[float] = 0.99,
        **common: Any,
    ) -> None:
        check_at_least(1, dim=dim)
        head = projector(encoder.feature_dim, dim)
        super().__init__(encoder, augmentation, ssql, head, momentum, **common)
        self.predictor = predictor(dim)

    loss = SimSiam.loss
