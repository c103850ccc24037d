"""What all speech encoders share: frames of a clip, their mask, and their mean."""

import torch
from torch import Tensor, nn

from encoders.base import Encoder
from quant import valid_frames


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


class BlockEncoder(FrameEncoder):
    """Base of the encoders that take log-mels through blocks: masked prediction teaches by what each block gives.

    Attributes:
        blocks: the blocks.
        block_width: features of a frame after a block.
        block_rate: frames a second after a block, in Hz.
    """

    blocks: nn.ModuleList
    block_width: int
    block_rate: float

    @property
    def stages(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def block_outputs(self, log_mel: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """What each block gives, (batch, frames, block_width) at `block_rate`, and the frames of each clip, (batch,).

        Frames beyond a clip's length hold numbers without a meaning; arguments as in `forward`.
        """
        outputs: list[Tensor] = []
        x, lengths, *_ = self._stem(log_mel, lengths)
        self.through_blocks(x, lengths, outputs)
        return outputs, lengths

    def _stem(self, log_mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
        """What the first block takes, (batch, frames, block_width), and the frames of each clip, (batch,)."""
        raise NotImplementedError

    def through_blocks(self, x: Tensor, lengths: Tensor | None, outputs: list[Tensor] | None = None) -> Tensor:
        """Frames x (batch, frames, block_width) through all blocks; what each gives is kept in `outputs`, if given.

        Without lengths every frame is real.
        """
        mask = None if lengths is None else frame_mask(lengths, x.shape[1])
        with valid_frames(mask):
            for block in self.blocks:
                x = block(x, mask)
                if outputs is not None:
                    outputs.append(x)
        return x


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


def unpadded(frames: Tensor, lengths: Tensor) -> Tensor:
    """Frames (batch, frames, ...) within their clips' lengths (batch,), one after the other: (all frames, ...)."""
    return frames[frame_mask(lengths, frames.shape[1])]
