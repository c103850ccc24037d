"""Random changes of waveforms: a crop, speed, a room, noise."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.speech.log_mel import WINDOW
from ssql.augment.recordings import BEFORE_PEAK

PROBABILITY = 0.5  # share of the clips that get noise; a room, and another clip behind them, have the same share


def random_crop(waveform: Tensor, lengths: Tensor, min_crop: float) -> tuple[Tensor, Tensor]:
    """A random stretch of each clip, at least `min_crop` of it and at least one 25 ms frame."""
    keep = min_crop + (1 - min_crop) * torch.rand(len(lengths), device=lengths.device)
    new_lengths = (lengths * keep).long().clamp_min(2 * WINDOW).minimum(lengths)
    start = (torch.rand(len(lengths), device=lengths.device) * (lengths - new_lengths + 1)).long()
    position = torch.arange(int(new_lengths.max()), device=lengths.device)
    index = (start[:, None] + position).clamp_max(waveform.shape[1] - 1)
    return waveform.gather(1, index) * (position < new_lengths[:, None]), new_lengths


def at_random_speed(waveform: Tensor, lengths: Tensor, speeds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Each clip resampled so that it is faster or slower by one of the factors, its pitch with it (Ko et al. 2015).

    A clip that would be shorter than one 25 ms frame stays as it is.

    Args:
        waveform: shape (batch, samples), zero beyond each clip's length.
        lengths: samples of each clip, shape (batch,).
        speeds: factors in whole hundredths; 1.1 makes a clip shorter by a tenth.

    Returns:
        waveform, shape (batch, samples of the longest); samples of each clip, shape (batch,).
    """
    drawn = torch.randint(len(speeds), (len(lengths),)).to(lengths.device)
    changed = [(waveform, lengths, torch.arange(len(lengths), device=lengths.device))]
    for place, speed in enumerate(speeds):
        hundredths = round(100 * speed)
        shorter = (100 * lengths + hundredths - 1) // hundredths
        rows = torch.nonzero((drawn == place) & (shorter >= WINDOW))[:, 0]
        if hundredths != 100 and len(rows):
            changed.append((AF.resample(waveform[rows], hundredths, 100), shorter[rows], rows))
    lengths = lengths.clone()
    for _, new, rows in changed:
        lengths[rows] = new
    result = waveform.new_zeros(len(lengths), int(lengths.max()))
    for resampled, _, rows in changed:
        width = min(resampled.shape[1], result.shape[1])
        result[rows] = F.pad(resampled[:, :width], (0, result.shape[1] - width))
    return result * _within(result, lengths), lengths


def in_random_rooms(waveform: Tensor, lengths: Tensor, rooms: Sequence[Tensor]) -> Tensor:
    """Half of the clips as a room would give them back: as loud as before, the direct sound where it was.

    Args:
        waveform: shape (batch, samples), zero beyond each clip's length.
        lengths: samples of each clip, shape (batch,).
        rooms: impulse responses, shape (samples,), as `read_rooms` gives them.
    """
    rows = _half(len(waveform))
    drawn = torch.randint(len(rooms), (len(rows),)).tolist()
    if not len(rows):
        return waveform
    rows, device = rows.to(waveform.device), waveform.device
    clips, responses = waveform[rows], pad_sequence([rooms[room] for room in drawn], batch_first=True)
    samples = clips.shape[1] + responses.shape[1] - 1
    # A Fourier transform of a length with large prime factors takes several times as long.
    responses = F.pad(responses, (0, next_fast_len(samples, real=True) - samples)).to(device)
    heard = AF.fftconvolve(clips, responses)[:, BEFORE_PEAK : BEFORE_PEAK + clips.shape[1]]
    heard = heard * _within(clips, lengths[rows])
    return waveform.index_copy(0, rows, heard * rms(clips) / rms(heard))


def behind_recordings(waveform: Tensor, lengths: Tensor, noises: Sequence[Tensor], snr_db: Sequence[float]) -> Tensor:
    """Half of the clips behind a stretch of a recording, over and over where that is shorter.

    Args:
        waveform: shape (batch, samples), zero beyond each clip's length.
        lengths: samples of each clip, shape (batch,).
        noises: recordings, shape (samples,).
        snr_db: lowest and highest signal-to-noise ratio in dB, of the powers within a clip's length.
    """
    rows = _half(len(waveform))
    drawn, start = torch.randint(len(noises), (len(rows),)), torch.rand(len(rows))
    ratios = uniform(len(rows), snr_db, waveform)[:, 0]
    if not len(rows):
        return waveform
    position = torch.arange(waveform.shape[1])
    stretches = []
    for place, share in zip(drawn.tolist(), start.tolist(), strict=True):
        noise = noises[place]
        stretches.append(noise[(position + int(share * len(noise))) % len(noise)])
    noise, rows = torch.stack(stretches).to(waveform), rows.to(waveform.device)
    clips, lengths = waveform[rows], lengths[rows]
    silent = (noise * _within(noise, lengths)).square().sum(dim=1, keepdim=True) == 0  # no factor makes it louder
    noisy = AF.add_noise(clips, noise.masked_fill(silent, 1), ratios, lengths)
    return waveform.index_copy(0, rows, torch.where(silent, clips, noisy))


def _half(count: int) -> Tensor:
    """The places of about half of so many clips, drawn on the CPU, so that no device is waited for."""
    return torch.nonzero(torch.rand(count) < PROBABILITY)[:, 0]


def _within(waveform: Tensor, lengths: Tensor) -> Tensor:
    """Which samples are of a clip: bool, shape (batch, samples)."""
    return torch.arange(waveform.shape[1], device=lengths.device) < lengths[:, None]


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
