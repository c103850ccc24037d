"""What an observation keeps of one pass: a deterministic sample of the values, and statistics of channels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ChannelStatistics(NamedTuple):
    """What one pass leaves of values (..., channels) that are to be shifted or divided.

    Attributes:
        low: shape (channels,), float32; +inf without a valid frame.
        high: shape (channels,), float32; -inf without a valid frame.
        total: shape (channels,), float32, sum over valid frames.
        frames: shape (), float32, number of valid frames.
        samples: shape (frames, channels), float32, NaN in padding.
    """

    low: Tensor
    high: Tensor
    total: Tensor
    frames: Tensor
    samples: Tensor


def channel_statistics(values: Tensor, valid: Tensor | None, count: int) -> ChannelStatistics:
    """Statistics of each channel of values (..., channels), and about `count` of the values, in whole frames."""
    frames = values.flatten(0, -2).float()
    number, channels = frames.shape
    distance = max(number * channels // count, 1) if count else number
    while math.gcd(distance, number) > 1:  # so that every place in a clip has its turn
        distance -= 1
    samples = frames[::distance][: count // channels + 1].clone()  # a view would keep all frames in memory
    if valid is None:
        low, high = frames.aminmax(dim=0)
        return ChannelStatistics(low, high, frames.sum(dim=0), frames.new_tensor(number), samples)
    mask = valid.expand(*values.shape[:-1], 1).flatten(0, -2)
    return ChannelStatistics(
        frames.where(mask, torch.inf).amin(dim=0),
        frames.where(mask, -torch.inf).amax(dim=0),
        frames.where(mask, 0).sum(dim=0),
        mask.sum().float(),
        samples.where(mask[::distance][: len(samples)], torch.nan),
    )


def subsample(values: Tensor, valid: Tensor | None, count: int) -> Tensor:
    """At most `count` values at even distances in memory, the same elements at every call.

    The distance shares no factor with any axis, so that every channel has its turn.

    Args:
        values: any shape.
        valid: bool, broadcasts to the shape of values; values where it is False become NaN.
        count: at least 1.

    Returns:
        float32, shape (samples,).
    """
    distance = max(values.numel() // count, 1)
    while math.gcd(distance, values.numel()) > 1:
        distance -= 1
    # Axes as they lie in memory: flattening is then no copy, whatever the layout.
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    # A copy: a view would keep the whole tensor in memory.
    picked = values.permute(order).flatten()[::distance][:count].to(torch.float32, copy=True)
    if valid is None:
        return picked
    return picked.where(valid.expand_as(values).permute(order).flatten()[::distance][:count], torch.nan)
