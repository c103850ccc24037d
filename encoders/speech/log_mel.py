"""Log-mel front end: 16 kHz waveform to 100 frames a second."""

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

from quant.checks import check_at_least

SAMPLE_RATE = 16_000
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
SILENCE = 479  # samples after a clip in Step-Audio 2: two frames, its own last one made whole


class PowerSpectrum(nn.Module):
    """Squared magnitudes of the windowed Fourier transform; an exported file has another form of it."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):  # an encoder may be built on the meta device
            window = torch.hann_window(WINDOW)
        self.register_buffer("window", window, persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (batch, samples), edges padded, to (batch, 201, frames) without the last frame."""
        spectrum = torch.stft(waveform, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        return spectrum[..., :-1].abs().square()


def cut_to(seconds: float) -> str:
    """What to do about clips that are longer, to end a sentence with."""
    return f"cut it into windows (--data.max_seconds {seconds:g} cuts recordings, and ssql features takes any length)"


class LogMel(nn.Module):
    """Log-mel spectrogram with Whisper's settings, made safe for batches and streams.

    25 ms Hann window, 10 ms hop, Slaney mel filters, (log10(power) + 4) / 4, last frame dropped, as
    in openai/whisper `audio.py`. Two departures keep a clip's frames independent of its neighbours and
    of its future: edges are padded with zeros, not by reflection, and the floor is fixed (1e-10) instead
    of 80 dB under the clip's own maximum.

    Args:
        n_mels: 80 or 128 mel bands from 0 to 8,000 Hz.
    """

    filters: Tensor
    # Frames after a clip's last that convolutions may look at; `lengths` never counts them.
    lookahead = 0

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        if n_mels not in (80, 128):
            raise ValueError(f"n_mels must be 80 or 128, got {n_mels}")
        self.n_mels = n_mels
        with torch.device("cpu"):  # an encoder may be built on the meta device
            filters = AF.melscale_fbanks(
                WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
            )
        self.power_spectrum = PowerSpectrum()
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)

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
        waveform, lengths = checked_waveform(waveform, lengths)
        return self.scaled_log_mel(F.pad(waveform, (WINDOW // 2, WINDOW // 2))), lengths // HOP

    def scaled_log_mel(self, waveform: Tensor) -> Tensor:
        """Log-mel of a waveform whose edges are padded, without the last frame."""
        with torch.autocast(waveform.device.type, enabled=False):
            return (self._log10_mel(waveform) + 4) / 4

    def _log10_mel(self, waveform: Tensor) -> Tensor:
        """log10 of the mel powers, at least -10, of a waveform whose edges are padded; without the last frame."""
        return (self.filters @ self.power_spectrum(waveform.float())).clamp_min(1e-10).log10()


class WhisperLogMel(LogMel):
    """Log-mel spectrogram exactly as published encoders were trained with it, for their imported weights.

    As `LogMel`, but the left edge is reflected, a clip's floor is 80 dB under its own maximum (so a frame depends on
    the whole clip), and silence follows: 479 zeros, two more frames, as in Step-Audio 2 (Whisper and Qwen2-Audio
    pad to 30 s). `lengths` does not count these two frames; convolutions see them.
    """

    lookahead = 2

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel of a batch of clips; arguments and errors as in `LogMel`.

        Returns:
            log_mel, shape (batch, n_mels, ceil(samples / 160) + 2); frames of each clip without the two of silence,
            shape (batch,).
        """
        waveform, lengths = checked_waveform(waveform, lengths)
        frames = -(-lengths // HOP)
        with torch.autocast(waveform.device.type, enabled=False):
            left = waveform[:, 1 : WINDOW // 2 + 1].flip(1)
            log_mel = self._log10_mel(torch.cat([left, F.pad(waveform, (0, SILENCE + WINDOW // 2))], dim=1))
            return self._above_floor(log_mel, frames + self.lookahead), frames

    def _above_floor(self, log_mel: Tensor, seen: Tensor | None = None) -> Tensor:
        """log10 of the mel powers, scaled, at least 80 dB under a clip's maximum in all its frames or those seen."""
        of_clip = log_mel
        if seen is not None:
            mask = torch.arange(log_mel.shape[2], device=seen.device) < seen.unsqueeze(1)
            of_clip = log_mel.masked_fill(~mask.unsqueeze(1), -torch.inf)
        return (log_mel.maximum(of_clip.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


class FilledLogMel(WhisperLogMel):
    """Log-mel spectrogram of a clip that silence follows: to a fixed length, as Whisper itself takes it, or for less.

    As `WhisperLogMel`, but zeros follow the waveform, before the spectrogram. All frames count, so that an encoder
    attends to the silence too. Without a margin every clip is filled to the same length and gives equally many frames;
    with one each clip is followed by so much silence, or by what is left to that length.

    Args:
        n_mels: 80 or 128 mel bands.
        samples: that each clip is filled to, at most: 480,000 are 30 s.
        margin: seconds of silence after each clip, a multiple of 20 ms; all that is left to `samples` when None.

    Raises:
        ValueError: a margin below 20 ms or above `samples`, or that is no multiple of 20 ms.
    """

    lookahead = 0

    def __init__(self, n_mels: int = 80, samples: int = 480_000, margin: float | None = None) -> None:
        super().__init__(n_mels)
        check_at_least(2 * HOP / SAMPLE_RATE, margin=margin)
        frames = 0.0 if margin is None else margin * SAMPLE_RATE / (2 * HOP)
        if abs(frames - round(frames)) > 1e-6:
            raise ValueError(f"margin is a multiple of 0.02 s, the length of a feature's frame, not {margin:g}")
        if margin is not None and margin * SAMPLE_RATE > samples:
            raise ValueError(f"margin {margin:g} is above the {samples / SAMPLE_RATE:g} s that clips are filled to")
        self.samples, self.margin = samples, None if margin is None else 2 * HOP * round(frames)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-mel of a batch of clips; arguments as in `LogMel`.

        Returns:
            log_mel, shape (batch, n_mels, frames); frames of each clip with its silence, shape (batch,).

        Raises:
            ValueError: a clip that is longer, or a waveform that is not (batch, samples).
        """
        waveform, lengths = checked_waveform(waveform, lengths, shortest=1)
        left = self.samples - waveform.shape[1]
        if not torch.compiler.is_exporting() and left < 0:
            raise ValueError(
                f"clip of {waveform.shape[1] / SAMPLE_RATE:.2f} s is longer than the {self.samples / SAMPLE_RATE:g} s "
                f"that clips are filled to: {cut_to(self.samples / SAMPLE_RATE)}"
            )
        frames = torch.full_like(lengths, self.samples // HOP)
        if self.margin is not None:
            frames = (-(-lengths // HOP) + self.margin // HOP).minimum(frames)
            # What the last clip's own last frame lacks belongs to no margin.
            total = torch.sym_min(waveform.shape[1] + self.margin + HOP - 1, self.samples)
            left = total - waveform.shape[1]  # type: ignore[assignment]
        with torch.autocast(waveform.device.type, enabled=False):
            # Concatenated, not padded: an exported file then fails on a longer clip, and does not cut it off.
            filled = torch.cat([waveform, waveform.new_zeros(waveform.shape[0], left)], dim=1)
            start = filled[:, 1 : WINDOW // 2 + 1].flip(1)
            log_mel = self._log10_mel(torch.cat([start, F.pad(filled, (0, WINDOW // 2))], dim=1))
            return self._above_floor(log_mel, None if self.margin is None else frames), frames


def checked_waveform(waveform: Tensor, lengths: Tensor | None, shortest: int = WINDOW) -> tuple[Tensor, Tensor]:
    """A batch of waveforms and its lengths: all samples of each clip where None.

    Raises:
        ValueError: not (batch, samples), or shorter than one frame of `shortest` samples.
    """
    if waveform.dim() != 2:
        raise ValueError(f"waveform must be (batch, samples), got shape {tuple(waveform.shape)}")
    if waveform.shape[1] < shortest:
        raise ValueError(
            f"clip of {waveform.shape[1]} samples is shorter than one frame ({shortest} samples, "
            f"{shortest * 1000 // SAMPLE_RATE} ms at 16 kHz)"
        )
    if lengths is None:
        lengths = torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
    return waveform, lengths
