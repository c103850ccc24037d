"""What all speech encoders share: frames of a clip, their mask, and their mean."""

import torch
from torch import Tensor

from encoders.encoder import Encoder


class FrameEncoder(Encoder):
    """Base of the speech encoders: `forward` gives features of frames, `embed` their mean over the clip.

    Attributes:
        frame_rate: features a second, in Hz.
    """

    modality = "audio"
    frame_rate: float

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean of a clip's frame features, shape (batch, feature_dim); arguments as in `forward`."""
        return self.pool(*self(inputs, lengths))

    def pool(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean over a clip's frames, zero beyond its length: (batch, frames, feature_dim) to (batch, feature_dim)."""
        if lengths is None:
            return features.mean(dim=1)
        return features.sum(dim=1) / lengths.clamp_min(1).unsqueeze(1)


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True where a frame is real: lengths (batch,) to bool (batch, frames)."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def checked_log_mel(log_mel: Tensor, lengths: Tensor | None, n_mels: int, lookahead: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of log-mels and its lengths: where None, all frames of each clip but those of the lookahead.

    Raises:
        ValueError: not (batch, n_mels, frames).
    """
    if log_mel.dim() != 3 or log_mel.shape[1] != n_mels:
        raise ValueError(f"log_mel must be (batch, {n_mels}, frames), got shape {tuple(log_mel.shape)}")
    if lengths is None:
        lengths = torch.full((log_mel.shape[0],), log_mel.shape[2] - lookahead, device=log_mel.device)
    return log_mel, lengths
