"""Random views of speech: of waveforms, then of their log-mels."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoders.base import Encoder
from quant.checks import check_at_least
from ssql.augment.base import Augmentation
from ssql.augment.log_mels import masked, random_resized_crop
from ssql.augment.recordings import read_noises, read_rooms
from ssql.augment.waveforms import (
    PROBABILITY,
    at_random_speed,
    behind_recordings,
    decibels,
    in_random_rooms,
    random_crop,
    rms,
    uniform,
)

MIN_CROP = 0.6  # smallest part of a clip that a view keeps
GAIN = (-12.0, 6.0)  # dB
MEL_SCALE = 0.7  # smallest part of the mel axis and of the time axis that the resized crop keeps
MIX_SNR = (5.0, 20.0)  # lowest and highest signal-to-noise ratio in dB of another clip of the batch behind a clip
SPEEDS = (0.5, 2.0)  # that a clip may be played at


class SpeechAugmentation(Augmentation):
    """Waveform crop, speed, room, gain, mixing and noise, then mel random resized crop and masking.

    Each view of a clip has its own draws. Recordings are read once, when the run starts; those that cannot be read are
    skipped, counted and logged. A run that is resumed needs the same recordings.

    Args:
        noise: folder of noise recordings, such as ESC-10 or MUSAN, searched recursively; they take the place of white
            noise. 4 hours are kept in memory, 5 minutes of each at most.
        noise_snr_db: lowest and highest signal-to-noise ratio in dB of the noise, recorded or white, which half of the
            clips get; Kaldi has 0 to 15 for recordings.
        rooms: folder of room impulse responses, searched recursively; half of the clips are heard in one, as loud as
            before and not delayed. An hour is kept in memory, 2 seconds of each at most.
        speeds: factors of which each clip draws one, in whole hundredths; Kaldi has 0.9, 1 and 1.1. Pitch changes too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without a recording, ratios that are not two numbers, or a speed outside 0.5 to 2.
    """

    def __init__(
        self,
        noise: str | None = None,
        noise_snr_db: Sequence[float] = (5.0, 30.0),
        rooms: str | None = None,
        speeds: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        check_at_least(-torch.inf, noise_snr_db=noise_snr_db)
        if len(noise_snr_db) != 2 or noise_snr_db[0] > noise_snr_db[1]:
            raise ValueError(f"noise_snr_db must be two numbers, the lower first, got {list(noise_snr_db)}")
        low, high = SPEEDS
        if not speeds or any(not low <= speed <= high or speed != round(speed, 2) for speed in speeds):
            raise ValueError(f"speeds must be from {low:g} to {high:g}, in whole hundredths, got {list(speeds)}")
        self.noise_snr_db, self.speeds = noise_snr_db, speeds
        self.noises = [] if noise is None else read_noises(Path(noise))
        self.rooms = [] if rooms is None else read_rooms(Path(rooms))

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
        if any(speed != 1 for speed in self.speeds):
            waveform, lengths = at_random_speed(waveform, lengths, self.speeds)
        if self.rooms:
            waveform = in_random_rooms(waveform, lengths, self.rooms)
        waveform = waveform * decibels(uniform(len(waveform), GAIN, waveform))
        waveform = self._add(waveform, waveform.roll(1, dims=0), MIX_SNR)
        if self.noises:
            waveform = behind_recordings(waveform, lengths, self.noises, self.noise_snr_db)
        else:
            waveform = self._add(waveform, torch.randn_like(waveform), self.noise_snr_db)
        waveform = waveform * (torch.arange(waveform.shape[1], device=lengths.device) < lengths[:, None])
        log_mel, frames = encoder.front_end(waveform, lengths)
        if log_mel.dim() == 2:
            return log_mel, frames
        log_mel = random_resized_crop(log_mel, frames, MEL_SCALE)
        return masked(log_mel, frames), frames

    def _add(self, signal: Tensor, other: Tensor, snr_db: Sequence[float]) -> Tensor:
        chosen = torch.rand(len(signal), 1, device=signal.device) < PROBABILITY
        ratio = rms(signal) / rms(other) / decibels(uniform(len(signal), snr_db, signal))
        return signal + other * ratio * chosen
