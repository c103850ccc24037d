"""Random changes of log-mels: a resized crop, and masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

# SpecAugment's widest band in mels, and longest stretch as a part of the clip, that are masked.
FREQUENCY_MASK, TIME_MASK = 12, 0.2


def random_resized_crop(log_mel: Tensor, frames: Tensor, min_scale: float) -> Tensor:
    """A random rectangle of each clip's mel-time plane, stretched back to its full size (BYOL-A, Sec. III-B)."""
    batch, n_mels, time = log_mel.shape
    grid = []
    for size, extent in ((time, frames.float()), (n_mels, torch.full_like(frames, n_mels).float())):
        scale = min_scale + (1 - min_scale) * torch.rand(batch, device=log_mel.device)
        start = torch.rand(batch, device=log_mel.device) * (1 - scale) * extent
        source = start[:, None] + scale[:, None] * torch.arange(size, device=log_mel.device)
        grid.append((2 * source + 1) / size - 1)  # grid_sample's coordinates, -1 to 1
    across, down = grid
    points = torch.stack(
        [across[:, None, :].expand(-1, n_mels, -1), down[:, :, None].expand(-1, -1, time)], dim=-1
    )  # (batch, n_mels, time, 2)
    resized = F.grid_sample(log_mel.unsqueeze(1), points, padding_mode="border", align_corners=False)
    return resized.squeeze(1)


def masked(log_mel: Tensor, frames: Tensor) -> Tensor:
    """A random band and a random stretch of each clip are zero (SpecAugment, Park et al. 2019)."""
    batch, n_mels, time = log_mel.shape
    longest = frames * TIME_MASK
    for axis, size, widest in ((1, n_mels, torch.full_like(longest, FREQUENCY_MASK)), (2, time, longest)):
        extent = torch.where(frames > 0, n_mels, frames) if axis == 1 else frames
        width = torch.rand(batch, device=log_mel.device) * widest
        start = torch.rand(batch, device=log_mel.device) * (extent - width).clamp_min(0)
        position = torch.arange(size, device=log_mel.device)
        hidden = (position >= start[:, None]) & (position < (start + width)[:, None])
        log_mel = log_mel.masked_fill(hidden.unsqueeze(2 if axis == 1 else 1), 0)
    return log_mel
