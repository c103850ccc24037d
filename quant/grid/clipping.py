"""The clipped range that minimises the squared error of rounding and clamping at a bit-width."""

import torch
from torch import Tensor

from quant.grid.affine import activation_qparams, integer_range

# Fractions of the largest magnitude that are tried: each 0.87 of the one before, down to 1/16.
ACTIVATION_RATIOS = tuple(2 ** (-k / 5) for k in range(21))


def clipped_range(samples: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Each tensor's range [low, high] clipped at the magnitude that costs the least squared error.

    A limit on the magnitude, not a factor on both ends: the short tail of a GELU's output stays whole while
    its long one is clipped.

    Args:
        samples: shape (tensors, samples), values of each tensor; zeros add no error.
        low: shape (tensors,), smallest value of each tensor, not only of its samples.
        high: shape (tensors,), largest value of each tensor.
        bits: 2 to 8, of the unsigned grid.

    Returns:
        low and high, each of shape (tensors,).
    """
    ratios = torch.tensor(ACTIVATION_RATIOS, device=low.device)
    limits = torch.maximum(-low, high).unsqueeze(1) * ratios  # (tensors, ratios)
    lows, highs = torch.maximum(low.unsqueeze(1), -limits), torch.minimum(high.unsqueeze(1), limits)
    scales, zero_points = activation_qparams(lows, highs, bits)
    smallest, largest = integer_range(bits, signed=False)
    # A ratio at a time: the samples of a network fit into a cache, the samples of all ratios do not.
    errors = [
        squared_error(samples, scale, smallest - zero_point, largest - zero_point)
        for scale, zero_point in zip(scales.T.unsqueeze(2), zero_points.T.unsqueeze(2), strict=True)
    ]
    best = torch.stack(errors, dim=1).argmin(dim=1, keepdim=True)
    return lows.gather(1, best).squeeze(1), highs.gather(1, best).squeeze(1)


def squared_error(values: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Sum over each row of (clamp(round(v / scale), low, high) * scale - v)^2.

    Args:
        values: shape (rows, columns).
        scale: shape (rows, 1).
        low: smallest integer, a number or of shape (rows, 1).
        high: largest integer, a number or of shape (rows, 1).

    Returns:
        shape (rows,).
    """
    steps = values / scale
    error = steps.clamp(low, high).round_().sub_(steps)  # type: ignore[arg-type]
    return torch.linalg.vecdot(error, error) * scale.squeeze(1).square()
