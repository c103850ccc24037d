"""A stream of samples: log-mel frames and features as soon as they are complete, in memory that does not grow."""

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.models.streaming import StreamingTransformer
from encoders.speech.log_mel import HOP, WINDOW, LogMel


class Stream:
    """One stream, sample by sample if need be: features as soon as a chunk is whole.

    Args:
        encoder: in evaluation mode.
    """

    def __init__(self, encoder: StreamingTransformer) -> None:
        self.encoder = encoder
        device = encoder.conv1.weight.device
        self.log_mel = LogMelStream(encoder.front_end)
        self.state = encoder.start(1, device)
        self.waiting = torch.zeros(1, encoder.arguments["n_mels"], 0, device=device)

    @torch.no_grad()
    def push(self, waveform: Tensor) -> Tensor:
        """The next samples, (samples,) at 16,000 Hz, to the features of complete chunks, (frames, feature_dim)."""
        self.waiting = torch.cat([self.waiting, self.log_mel.push(waveform.unsqueeze(0))], dim=2)
        whole = self.waiting.shape[2] // self.encoder.chunk_mels * self.encoder.chunk_mels
        piece, self.waiting = self.waiting[:, :, :whole], self.waiting[:, :, whole:]
        return self._features(piece, whole)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The last features, as for a clip that ends here."""
        rest = torch.cat([self.waiting, self.log_mel.finish()], dim=2)
        return self._features(F.pad(rest, (0, -rest.shape[2] % self.encoder.chunk_mels)), rest.shape[2])

    def _features(self, piece: Tensor, frames: int) -> Tensor:
        if not frames:
            return piece.new_zeros(0, self.encoder.feature_dim)
        lengths = torch.tensor([frames], device=piece.device)
        features, feature_lengths, self.state = self.encoder.stream(piece, lengths, self.state)
        return features[0, : int(feature_lengths)]


class LogMelStream:
    """Log-mel of streams, piece by piece: the frames that `LogMel` gives for the whole, as soon as they are complete.

    Keeps less than 40 ms of samples. A frame is complete 12.5 ms after its middle.

    Args:
        front_end: `LogMel`; Whisper's own needs the whole clip.

    Raises:
        ValueError: another front end.
    """

    def __init__(self, front_end: LogMel) -> None:
        if type(front_end) is not LogMel:
            raise ValueError(f"{type(front_end).__name__} needs the whole clip: streams need LogMel (log_mel: causal)")
        self.front_end = front_end
        self.kept: Tensor | None = None

    def push(self, waveform: Tensor) -> Tensor:
        """The next samples, (batch, samples) at 16,000 Hz, to complete frames, (batch, n_mels, frames)."""
        left = waveform.new_zeros(len(waveform), WINDOW // 2) if self.kept is None else self.kept
        waveform = torch.cat([left, waveform], dim=1)
        frames = max(0, (waveform.shape[1] - WINDOW) // HOP + 1)
        self.kept = waveform[:, frames * HOP :]
        if not frames:
            return waveform.new_zeros(len(waveform), self.front_end.n_mels, 0)
        # The last frame is dropped there: one more hop makes it the one that is not complete.
        return self.front_end.scaled_log_mel(F.pad(waveform[:, : (frames - 1) * HOP + WINDOW], (0, HOP)))

    def finish(self) -> Tensor:
        """The last frames, as for a clip that ends here."""
        if self.kept is None:
            raise ValueError("a stream without a sample has no frames")
        remaining = (self.kept.shape[1] - WINDOW // 2) // HOP
        return self.push(self.kept.new_zeros(len(self.kept), WINDOW // 2))[:, :, :remaining]
