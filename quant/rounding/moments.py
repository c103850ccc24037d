"""A layer's inputs over data, in full precision and on the grid: means, covariances, and the best float weight."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.layers import QuantLayer
from quant.rounding.solve import DAMPING


@dataclass
class Moments:
    """Sums over tokens of a layer's inputs; `exact` in full precision, `seen` behind quantized layers and on the grid.

    Attributes:
        center: shape (parts, inputs), taken off all inputs: sums of squares of large means would lose digits.
        exact: shape (parts, inputs), sum.
        seen: shape (parts, inputs), sum.
        squares: shape (parts, inputs, inputs), seen with seen.
        products: shape (parts, inputs, inputs), exact with seen.
        count: tokens.
    """

    center: Tensor
    exact: Tensor
    seen: Tensor
    squares: Tensor
    products: Tensor
    count: int = 0

    @classmethod
    def like(cls, exact: Tensor) -> "Moments":
        """Nothing yet, for inputs such as these, shape (parts, tokens, inputs)."""
        parts, _, inputs = exact.shape
        zeros = partial(exact.new_zeros, dtype=torch.float64)
        vectors, squares = (parts, inputs), (parts, inputs, inputs)
        return cls(exact.mean(dim=1, keepdim=True), zeros(vectors), zeros(vectors), zeros(squares), zeros(squares))

    def add(self, exact: Tensor, seen: Tensor) -> None:
        """One batch's inputs, each of shape (parts, tokens, inputs)."""
        exact, seen = exact - self.center, seen - self.center
        self.exact += exact.sum(dim=1)
        self.seen += seen.sum(dim=1)
        self.squares += seen.mT @ seen
        self.products += exact.mT @ seen
        self.count += exact.shape[1]

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean inputs, exact and seen, shape (parts, inputs), float32."""
        return tuple((sum / self.count + self.center.squeeze(1)).float() for sum in (self.exact, self.seen))  # type: ignore[return-value]

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of seen with seen and of exact with seen, shape (parts, inputs, inputs), float64: a bias takes the means."""
        exact, seen = self.exact / self.count, self.seen / self.count
        return (
            self.squares / self.count - seen.unsqueeze(2) * seen.unsqueeze(1),
            self.products / self.count - exact.unsqueeze(2) * seen.unsqueeze(1),
        )


def best_float_weight(weight: Tensor, seen: Tensor, between: Tensor) -> Tensor:
    """The float weight whose products with the seen inputs are closest to those of `weight` with the exact ones.

    Least squares, drawn towards `weight` where the inputs hardly vary (Qronos, GPTAQ and others round towards it too).

    Args:
        weight: shape (rows, inputs).
        seen: shape (inputs, inputs), covariance of the seen inputs.
        between: shape (inputs, inputs), covariance of the exact with the seen ones.
    """
    damped = seen + DAMPING * seen.diagonal().mean().clamp_min(1e-30) * torch.eye(len(seen), device=seen.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return (weight.double() + weight.double() @ (between - seen) @ inverse).float()


def tokens_of(layer: QuantLayer, values: Tensor) -> Tensor:
    """A layer's input as its weight's rows meet it, without padding: shape (groups, tokens, inputs of a row).

    Args:
        layer: linear, or a convolution, whose tokens are patches.
        values: shape (..., in), (batch, in, time) or (batch, in, height, width).
    """
    if isinstance(layer, nn.Linear):
        valid = layer._valid(values)
        return (values.flatten(0, -2) if valid is None else values[valid.squeeze(-1)]).unsqueeze(0)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    values = F.pad(values, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):
        values = values.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(values, kernel, dilation, 0, stride)
    return patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
