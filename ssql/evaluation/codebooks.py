"""How a codebook is used: which share of its codes, and how evenly."""

import torch
from torch import Tensor


def code_counts(tokens: Tensor, codes: int) -> Tensor:
    """How often each code was given, shape (codes,); tokens of any shape, padding below 0."""
    return torch.bincount(tokens[tokens >= 0], minlength=codes)


def use(counts: Tensor) -> float:
    """Codes that were given at all, in percent of the codebook."""
    return 100 * float((counts > 0).float().mean())


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of the codes: as many codes, evenly used, would say as much. From 1 to all codes."""
    shares = counts[counts > 0].double() / counts.sum()
    return float((-(shares * shares.log()).sum()).exp())
