"""Random views of a batch: of waveforms and their log-mels, or of images.

All randomness comes from torch's global generator; the training step seeds it from (seed, step, rank).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

from encoders.base import Encoder
from encoders.speech.log_mel import WINDOW
from quant.checks import check_at_least, check_share

MIN_CROP = 0.6  # smallest part of a clip that a view keeps
GAIN = (-12.0, 6.0)  # dB
MEL_SCALE = 0.7  # smallest part of the mel axis and of the time axis that the resized crop keeps
# SpecAugment's widest band in mels, and longest stretch as a part of the clip, that are masked.
FREQUENCY_MASK, TIME_MASK = 12, 0.2
# Lowest and highest signal-to-noise ratio in dB of added white noise, and of another clip of the batch behind a clip.
NOISE_SNR, MIX_SNR = (5.0, 30.0), (5.0, 20.0)
NOISE_PROBABILITY = 0.5  # share of the clips that get noise; another clip has the same share


class Augmentation(nn.Module, ABC):
    """Base of what makes a random view of a batch: options take a class that is made from it, and no other module."""

    @abstractmethod
    def forward(self, inputs: Tensor, lengths: Any, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """One view of a batch, ready for the encoder.

        Args:
            inputs: waveforms, shape (batch, samples), or images, shape (batch, channels, height, width).
            lengths: samples of each clip, shape (batch,); None for images.
            encoder: gives the front end.

        Returns:
            what the encoder takes; frames of each clip, shape (batch,), None for images.
        """


class SpeechAugmentation(Augmentation):
    """Waveform crop, gain, mixing and noise, then mel random resized crop and masking."""

    def forward(self, inputs: Tensor, lengths: Tensor, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """One view of a batch.

        Args:
            inputs: waveforms, shape (batch, samples), 16,000 Hz, zero beyond each clip's length.
            lengths: samples of each clip, shape (batch,).
            encoder: gives the front end; one of waveforms gets those as they are now.

        Returns:
            log_mel, shape (batch, n_mels, frames); frames of each clip, shape (batch,).
        """
        waveform, lengths = random_crop(inputs, lengths, MIN_CROP)
        waveform = waveform * decibels(uniform(len(waveform), GAIN, waveform))
        waveform = self._add(waveform, waveform.roll(1, dims=0), MIX_SNR)
        waveform = self._add(waveform, torch.randn_like(waveform), NOISE_SNR)
        waveform = waveform * (torch.arange(waveform.shape[1], device=lengths.device) < lengths[:, None])
        log_mel, frames = encoder.front_end(waveform, lengths)
        if log_mel.dim() == 2:
            return log_mel, frames
        log_mel = random_resized_crop(log_mel, frames, MEL_SCALE)
        return masked(log_mel, frames), frames

    def _add(self, signal: Tensor, other: Tensor, snr_db: Sequence[float]) -> Tensor:
        chosen = torch.rand(len(signal), 1, device=signal.device) < NOISE_PROBABILITY
        ratio = rms(signal) / rms(other) / decibels(uniform(len(signal), snr_db, signal))
        return signal + other * ratio * chosen


class ImageAugmentation(Augmentation):
    """The published recipe on whole batches, where they are: resized crop, flip, colour jitter, greyscale, blur.

    Args:
        image_size: height and width of a view, in pixels.
        min_area: smallest part of the image's area that the crop keeps.
        colour: jitter of brightness, contrast, saturation and hue, with probability 0.8, and greyscale with 0.2;
            for grey images only brightness and contrast.
        flip: mirror half of the views; wrong for digits and letters.
        blur: Gaussian blur with probability 0.5 (the ImageNet recipe).
    """

    def __init__(
        self, image_size: int = 32, min_area: float = 0.2, colour: bool = True, flip: bool = True, blur: bool = False
    ) -> None:
        super().__init__()
        check_at_least(1, image_size=image_size)
        check_share(min_area=min_area)
        # `slice` would cut and resize one image after the other.
        self.crop = K.RandomResizedCrop((image_size, image_size), scale=(min_area, 1.0), cropping_mode="resample")
        self.colour, self.grey = nn.Sequential(), nn.Sequential()
        if colour:
            self.colour.append(K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)).append(K.RandomGrayscale(p=0.2))
            self.grey.append(K.ColorJitter(0.4, 0.4, p=0.8))
        self.last = nn.Sequential()
        if blur:
            kernel = max(3, image_size // 10 | 1)
            self.last.append(K.RandomGaussianBlur((kernel, kernel), sigma=(0.1, 2.0), p=0.5))
        if flip:
            self.last.append(K.RandomHorizontalFlip(p=0.5))

    def forward(self, inputs: Tensor, lengths: Tensor | None, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """One view, each image with its own draw: (batch, channels, height, width) in [0, 1], then normalized."""
        colour = self.colour if inputs.shape[1] == 3 else self.grey
        with torch.autocast(inputs.device.type, enabled=False):
            views = self.last(colour(self.crop(inputs)))
        normalized, lengths = encoder.front_end(views, lengths)
        return normalized, lengths


def random_crop(waveform: Tensor, lengths: Tensor, min_crop: float) -> tuple[Tensor, Tensor]:
    """A random stretch of each clip, at least `min_crop` of it and at least one 25 ms frame."""
    keep = min_crop + (1 - min_crop) * torch.rand(len(lengths), device=lengths.device)
    new_lengths = (lengths * keep).long().clamp_min(2 * WINDOW).minimum(lengths)
    start = (torch.rand(len(lengths), device=lengths.device) * (lengths - new_lengths + 1)).long()
    position = torch.arange(int(new_lengths.max()), device=lengths.device)
    index = (start[:, None] + position).clamp_max(waveform.shape[1] - 1)
    return waveform.gather(1, index) * (position < new_lengths[:, None]), new_lengths


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


def uniform(count: int, bounds: Sequence[float], like: Tensor) -> Tensor:
    """Uniform draws between two bounds, shape (count, 1)."""
    low, high = bounds
    return low + (high - low) * torch.rand(count, 1, device=like.device)


def decibels(gain: Tensor) -> Tensor:
    """Gain in dB to a factor of amplitude."""
    return AF.DB_to_amplitude(gain, 1.0, 0.5)


def rms(waveform: Tensor) -> Tensor:
    """Root mean square of each clip, shape (batch, 1), never zero."""
    return waveform.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
