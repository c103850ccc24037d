"""Log-mel front end: 16 kHz waveform to 100 frames a second."""

import torch
import torchaudio.functional as AF
from torch import Tensor, nn

SAMPLE_RATE = 16_000
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms


class LogMel(nn.Module):
    """Log-mel spectrogram with Whisper's settings, made safe for batches and streams.

    25 ms Hann window, 10 ms hop, Slaney mel filters, (log10(power) + 4) / 4, last frame dropped, as
    in openai/whisper `audio.py`. Two departures keep a clip's frames independent of its neighbours and
    of its future: edges are padded with zeros, not by reflection, and the floor is fixed (1e-10) instead
    of 80 dB under the clip's own maximum.

    Args:
        n_mels: 80 or 128 mel bands from 0 to 8,000 Hz.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        if n_mels not in (80, 128):
            raise ValueError(f"n_mels must be 80 or 128, got {n_mels}")
        self.n_mels = n_mels
        filters = AF.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel of a batch of clips.

        Args:
            waveform: shape (batch, samples), 16,000 Hz, in [-1, 1], zero beyond each clip's length.
            lengths: samples of each clip, shape (batch,); all of them when None.

        Returns:
            log_mel, shape (batch, n_mels, samples // 160); frames of each clip, shape (batch,).

        Raises:
            ValueError: a batch shorter than one window, or that is not (batch, samples).
        """
        if waveform.dim() != 2:
            raise ValueError(f"waveform must be (batch, samples), got shape {tuple(waveform.shape)}")
        if waveform.shape[1] < WINDOW:
            raise ValueError(
                f"clip of {waveform.shape[1]} samples is shorter than one frame ({WINDOW} samples, 25 ms at 16 kHz)"
            )
        if lengths is None:
            lengths = torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(), WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
            )
            power = spectrum[..., :-1].abs().square()  # (batch, bins, frames)
            mel = self.filters.T @ power
            return (mel.clamp_min(1e-10).log10() + 4) / 4, lengths // HOP
