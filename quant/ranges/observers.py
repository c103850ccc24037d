"""How an activation's range is found from what was seen of it: whole, averaged over time, or clipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from quant.bits import row_of
from quant.checks import check_choice
from quant.grid.clipping import clipped_range


@dataclass(frozen=True)
class Seen:
    """What the passes of an observation leave, of several tensors at once.

    Attributes:
        low: shape (tensors, passes), smallest value of each pass; +inf where a tensor had no such pass.
        high: shape (tensors, passes), largest value of each pass; -inf where there was none.
        samples: shape (tensors, samples), values of all passes; NaN is no value.
        previous_low: shape (tensors, 7), the ranges until now, one per bit-width from 2 to 8; +inf for none.
        previous_high: shape (tensors, 7); -inf for none.
        wanted: bit-width to the tensors (indices) that are to run at it.
    """

    low: Tensor
    high: Tensor
    samples: Tensor
    previous_low: Tensor
    previous_high: Tensor
    wanted: Mapping[int, Sequence[int]]


class Observer(Protocol):
    """Finds ranges."""

    @property
    def samples(self) -> int:
        """Values kept of each pass through a tensor; 0 when the extremes are enough."""

    @property
    def by_bits(self) -> bool:
        """Whether ranges depend on the bit-width: only those of `Seen.wanted` are then set."""

    def ranges(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Low and high end of each tensor's range, (tensors, 7), or (tensors, 1) for all bit-widths alike."""


@dataclass(frozen=True)
class MinMax:
    """Smallest and largest value of all passes, as published (Cao et al. 2022)."""

    samples: ClassVar[int] = 0
    by_bits: ClassVar[bool] = False

    def ranges(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Shape (tensors, 1) each."""
        return seen.low.amin(dim=1, keepdim=True), seen.high.amax(dim=1, keepdim=True)


@dataclass(frozen=True)
class MovingAverage:
    """Smallest and largest value, averaged exponentially over passes; goes on from the ranges until now.

    The momentum-updated ranges of SSQL's ablation, and of Jacob et al. 2018, Sec. 3.1.

    Args:
        momentum: weight of the past in each pass, from 0 (the last pass alone) to below 1.

    Raises:
        ValueError: another momentum.
    """

    momentum: float = 0.9
    samples: ClassVar[int] = 0
    by_bits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum of a moving average must be at least 0 and below 1, got {self.momentum}")

    def ranges(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Shape (tensors, 7) each."""
        low, high = seen.previous_low, seen.previous_high
        for pass_low, pass_high in zip(seen.low.unsqueeze(2).unbind(1), seen.high.unsqueeze(2).unbind(1), strict=True):
            low, high = self._followed(low, pass_low), self._followed(high, pass_high)
        return low, high

    def _followed(self, average: Tensor, new: Tensor) -> Tensor:
        first = average.isinf()
        followed = torch.where(first, new, torch.lerp(new, average, self.momentum))
        return torch.where(new.isinf(), average, followed)


@dataclass(frozen=True)
class MeanSquaredError:
    """At each bit-width, the clipped range with the least squared error: see `clipping.clipped_range`.

    Args:
        samples: values kept of each pass, on which the error is measured; the extremes are always exact.

    Raises:
        ValueError: less than one sample.
    """

    samples: int = 4096
    by_bits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"an observer needs at least one sample of each pass, got {self.samples}")

    def ranges(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Shape (tensors, 7) each; no range where a bit-width is not wanted."""
        low, high = torch.full_like(seen.previous_low, torch.inf), torch.full_like(seen.previous_high, -torch.inf)
        smallest, largest = seen.low.amin(dim=1), seen.high.amax(dim=1)
        samples = seen.samples.nan_to_num(0.0)
        for bits, tensors in seen.wanted.items():
            if not tensors:
                continue
            index = torch.tensor(tensors, device=samples.device)
            found = clipped_range(samples[index], smallest[index], largest[index], bits)
            low[index, row_of(bits)], high[index, row_of(bits)] = found
        return low, high


OBSERVERS: dict[str, type[MinMax | MovingAverage | MeanSquaredError]] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "mse": MeanSquaredError,
}


def parse_observer(observer: str | Observer) -> Observer:
    """An observer from its name, with its defaults; an observer is returned as it is.

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(observer, str):
        return observer
    check_choice("observer", observer, OBSERVERS)
    return OBSERVERS[observer]()
