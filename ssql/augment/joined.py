"""Windows of several clips one after another."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.base import Encoder
from encoders.speech.log_mel import SAMPLE_RATE
from quant.checks import check_at_least
from ssql.augment.base import Augmentation


class Joined(Augmentation):
    """Clips of a batch joined to as few windows as they fill, with pauses of 0.1 to 0.6 s between, and else unchanged.

    For encoders that fill each clip to 30 s, such as Whisper's: of a short clip's window most would be silence.

    Args:
        seconds: of a window at most; a longer clip is cut there.

    Raises:
        ValueError: a window that is shorter than a second.
    """

    def __init__(self, seconds: float = 28.0) -> None:
        super().__init__()
        check_at_least(1, seconds=seconds)
        self.samples = int(seconds * SAMPLE_RATE)

    def forward(self, inputs: Tensor, lengths: Any, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """Fewer windows than clips: shapes are those of `Augmentation` but for the batch.

        Raises:
            ValueError: images.
        """
        if inputs.dim() != 2:
            raise ValueError("ssql.augment.Joined joins recordings: images take ssql.augment.Unchanged")
        windows: list[Tensor] = []
        for clip, length in zip(inputs, lengths.tolist(), strict=True):
            clip = clip[: min(length, self.samples)]
            pause = clip.new_zeros(int(SAMPLE_RATE * (0.1 + 0.5 * torch.rand(()).item())))
            if windows and len(windows[-1]) + len(pause) + len(clip) <= self.samples:
                windows[-1] = torch.cat([windows[-1], pause, clip])
            else:
                windows.append(clip)
        lasting = torch.tensor([len(window) for window in windows], device=inputs.device)
        view: tuple[Tensor, Tensor | None] = encoder.front_end(pad_sequence(windows, batch_first=True), lasting)
        return view
