"""Losses and collapse indicators on embeddings and frames, in float32 also under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_distance(features: Tensor, reference: Tensor) -> Tensor:
    """Mean square distance of features to a reference, over the reference's variance across the batch.

    0 when equal, 1 when as far away as the features of another clip or image (half of its square distance).

    Args:
        features: shape (count, dim).
        reference: shape (count, dim); no gradient flows into it.

    Returns:
        shape ().
    """
    reference = reference.detach().float()
    variance = reference.var(dim=0, correction=0).mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (features.float() - reference).square().mean() / variance


def symmetric_negative_cosine(predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean of -cos(p1, sg z2) and -cos(p2, sg z1): each view predicts the other (SimSiam, Eq. 2 and 4).

    Args:
        predictions: p1 and p2, each (batch, dim).
        targets: z1 and z2, each (batch, dim); no gradient flows into them.

    Returns:
        shape (), from -1 (best) to 1.
    """
    p1, p2 = (prediction.float() for prediction in predictions)
    z1, z2 = (target.detach().float() for target in targets)
    return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2


def nt_xent(anchors: list[Tensor], candidates: list[Tensor], temperature: float, first: int = 0) -> Tensor:
    """Cross-entropy of finding an anchor's other view among all candidates (SimCLR, Eq. 1).

    The candidate of the anchor's own view is left out: it is the anchor itself, or its twin at another precision.

    Args:
        anchors: z1 and z2, each (batch, dim).
        candidates: z1 and z2 of all processes, each (world size * batch, dim); gradient flows into them as well.
        temperature: divides the cosines.
        first: row of the candidates at which the anchors' own rows begin.

    Returns:
        shape (), mean over the anchors of both views.
    """
    total = len(candidates[0])
    logits = _cosines(torch.cat(anchors), torch.cat(candidates)) / temperature
    rows = first + torch.arange(len(anchors[0]), device=logits.device)
    own, other = torch.cat([rows, rows + total]), torch.cat([rows + total, rows])
    return F.cross_entropy(logits.scatter(1, own.unsqueeze(1), -torch.inf), other)


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a query's key among the negatives (MoCo, He et al. 2020, Eq. 1).

    Args:
        queries: shape (batch, dim).
        keys: the positive of each query, shape (batch, dim); no gradient flows into them.
        negatives: shape (count, dim).
        temperature: divides the cosines.

    Returns:
        shape ().
    """
    positive = F.cosine_similarity(queries.float(), keys.detach().float()).unsqueeze(1)
    logits = torch.cat([positive, _cosines(queries, negatives)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def masked_mean_square(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean over clips of each clip's mean square error on its masked frames.

    A clip weighs the same whatever its length, and whichever process it is on.

    Args:
        predictions: shape (batch, frames, dim).
        targets: shape (batch, frames, dim); no gradient flows into them.
        mask: bool, shape (batch, frames), True where a frame is to be predicted.

    Returns:
        shape ().
    """
    errors = (predictions.float() - targets.detach().float()).square().mean(dim=2) * mask
    return (errors.sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


@torch.no_grad()
def feature_std(embeddings: Tensor) -> Tensor:
    """Collapse indicator: deviation of the unit-length embeddings over the batch, times sqrt(dim).

    Near 1 for embeddings spread over the sphere, 0 when all are the same (SimSiam, Sec. 4.1).

    Args:
        embeddings: shape (batch, dim).
    """
    return F.normalize(embeddings.float(), dim=1).std(dim=0).mean() * embeddings.shape[1] ** 0.5


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of a (n, dim) with every row of b (m, dim), shape (n, m)."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float()) @ F.normalize(b.float()).T
