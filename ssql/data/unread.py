"""Inputs that are read where they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, overload

from torch import Tensor


class Unread(Sequence[Tensor], ABC):
    """Waveforms or images in files; what is not asked for is not read."""

    @property
    @abstractmethod
    def lengths(self) -> list[int] | None:
        """Samples of each clip; None for images."""

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """One input."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """Some of the inputs, in the order given; none is read."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Tensor | Self:
        """One input, which is read; or some, of which none is."""
        return self.subset(range(len(self))[index]) if isinstance(index, slice) else self.read(index)
