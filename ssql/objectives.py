"""Losses and collapse indicators on embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric_negative_cosine(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean of -cos(p1, sg z2) and -cos(p2, sg z1): each view predicts the other (SimSiam, Eq. 2 and 4).

    Args:
        predictions: p1 and p2, each (batch, dim).
        targets: z1 and z2, each (batch, dim); no gradient flows into them.

    Returns:
        shape (), from -1 (best) to 1.
    """
    p1, p2 = predictions
    z1, z2 = (target.detach() for target in targets)
    return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2


@torch.no_grad()
def feature_std(embeddings: Tensor) -> Tensor:
    """Collapse indicator: deviation of the unit-length embeddings over the batch, times sqrt(dim).

    Near 1 for embeddings spread over the sphere, 0 when all are the same (SimSiam, Sec. 4.1).

    Args:
        embeddings: shape (batch, dim).
    """
    return F.normalize(embeddings.float(), dim=1).std(dim=0).mean() * embeddings.shape[1] ** 0.5
