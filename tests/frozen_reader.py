"""Readers for `ssql evaluate --reader frozen_reader.SignReader`: what a user writes for a model of their own."""

import torch

from ssql.evaluation.reader import Reader


class SignReader(Reader):
    """Says of each tenth of a clip whether its first feature, in twentieths, is an even number: yes, or no no.

    Args:
        takes: width of the features that it claims to take.
        of_all: frames that it claims to take of every clip.
    """

    def __init__(self, takes: int = 32, of_all: int | None = None) -> None:
        self.takes, self.of_all = takes, of_all

    @property
    def width(self) -> int:
        return self.takes

    @property
    def frames(self) -> int | None:
        return self.of_all

    def read(self, features: torch.Tensor, frames: torch.Tensor) -> list[str]:
        texts = []
        for clip, count in zip(features, frames.tolist(), strict=True):
            parts = clip[:count, 0].chunk(10)
            texts.append(" ".join("YES" if int(20 * part.mean()) % 2 == 0 else "no  no" for part in parts))
        return texts
