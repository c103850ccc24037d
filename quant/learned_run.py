"""What one layer learns for one bit-width beside the weight that all bit-widths share."""

import torch
from torch import Tensor, nn

from quant.grid.affine import quantize
from quant.grid.learned_factor import fake_quantize_factored

# Of a step: how far from the middle of its cell a weight starts at most whose integer was chosen on data. The integers
# make up for each other's errors: near an edge the first steps of a training would undo that.
INSIDE = 0.25
# A learning rate that moves offsets well throws scales and biases about: their Parameters count in smaller units.
# Tried on Whisper tiny.en at w2a8 (experiments/whisper/distilled.md).
OF_SCALE, OF_NOISE = 1 / 8, 1 / 2


class LearnedRun(nn.Module):
    """Scales, a bias correction and, where asked, offsets before rounding.

    Attributes:
        scale: buffer, shape (rows, 1, ...), those that the integers come from.
        growth: Parameter of the same shape, zeros at first: by how much scales have grown, in eighths of the first
            ones, because an optimizer such as Adam moves small numbers as far as large ones.
        first_correction: buffer, shape (out,): what is taken off the bias at first.
        noise: buffer, shape (out,): size of an output's error if rounding errors of one step met inputs of one.
        change: Parameter, shape (out,), zeros at first: what more is taken off, in halves of `noise`.
        integers: buffer, int8, shape (rows, ...), that were chosen on data and stay; None where the weight is rounded.
        offset: Parameter, shape (rows, ...), in steps: what is added to the weight before it is rounded; None without.
    """

    scale: Tensor
    first_correction: Tensor
    noise: Tensor
    integers: Tensor | None

    def __init__(self, rows: Tensor, scale: Tensor, correction: Tensor, integers: Tensor | None, offsets: bool) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.growth = nn.Parameter(torch.zeros_like(scale))
        self.register_buffer("first_correction", correction.clone())
        self.register_buffer("noise", _norms(scale.expand_as(rows), len(correction)))
        self.change = nn.Parameter(torch.zeros_like(correction))
        self.register_buffer("integers", None if offsets else integers)
        self.offset = nn.Parameter(_first_offset(rows, scale, integers)) if offsets else None

    @property
    def factor(self) -> Tensor:
        """What the first scales are multiplied by, shape (rows, 1, ...)."""
        return 1 + OF_SCALE * self.growth

    @property
    def correction(self) -> Tensor:
        """What is taken off the bias, shape (out,)."""
        return self.first_correction + OF_NOISE * self.noise * self.change

    def fake_quantized(self, rows: Tensor, bits: int) -> Tensor:
        """Rows of a weight, shape (rows, ...), on the grid."""
        if self.integers is not None:
            return self.integers * (self.scale * self.factor)
        return fake_quantize_factored(self._moved(rows), self.scale, self.factor, bits)

    def quantized(self, rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Integers, int8, of the rows' shape, and scales, shape (rows, 1, ...)."""
        integers = self.integers
        if integers is None:
            integers = quantize(self._moved(rows).detach(), self.scale, 0, bits, signed=True)
        return integers, (self.scale * self.factor).detach()

    def _moved(self, rows: Tensor) -> Tensor:
        return rows if self.offset is None else rows + self.offset * self.scale


def _first_offset(rows: Tensor, scale: Tensor, integers: Tensor | None) -> Tensor:
    """The least with which rows come well inside the cells of integers, in steps; zeros without."""
    steps = rows / scale
    return torch.zeros_like(rows) if integers is None else integers - steps + (steps - integers).clamp(-INSIDE, INSIDE)


def _norms(steps: Tensor, out: int) -> Tensor:
    """Of the steps of each output's weights, shape (out,)."""
    return steps.reshape(out, -1).norm(dim=1)
