"""Quantized forms of Conv1d, Conv2d and Linear: the same layer object, seen at the bit-width of the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.affine import activation_qparams, fake_quantize_activation, fake_quantize_weight
from quant.bits import FLOAT_BITS, FULL_PRECISION, BitWidth
from quant.policy import LayerRule, Policy

_VALID: ContextVar[Tensor | None] = ContextVar("valid_frames", default=None)


@dataclass
class Mode:
    """How the layers of one prepared model run just now; they all share one."""

    policy: Policy = field(default_factory=Policy)
    bit_width: BitWidth = FULL_PRECISION
    observing: bool = False
    # Quantized weights of the current run by layer, when the run asked to reuse them.
    weights: dict[int, Tensor] | None = None


@contextmanager
def valid_frames(mask: Tensor | None) -> Iterator[None]:
    """Inside, observers ignore the padded frames of (batch, time, features) inputs.

    Args:
        mask: bool, shape (batch, time), True where a frame is real; None when nothing is padded.
    """
    token = _VALID.set(mask)
    try:
        yield
    finally:
        _VALID.reset(token)


class QuantLayer(nn.Module):
    """What the quantized forms share: a rule, the shared mode and the input's observed range.

    The weight and bias stay the Parameters of the layer that was prepared; nothing is copied.

    Attributes:
        activation_min: buffer, shape (), smallest input value observed (+inf before any).
        activation_max: buffer, shape (), largest input value observed (-inf before any).
    """

    weight: Tensor
    rule: LayerRule
    mode: Mode
    activation_min: Tensor
    activation_max: Tensor
    # True once the range is known to be there: looking at the buffers would wait for the device.
    calibrated: bool = False

    def attach(self, rule: LayerRule, mode: Mode) -> None:
        """Add rule, mode and range buffers to a layer whose class has just become a quantized one."""
        self.rule, self.mode = rule, mode
        device = self.weight.device
        self.register_buffer("activation_min", torch.tensor(torch.inf, device=device))
        self.register_buffer("activation_max", torch.tensor(-torch.inf, device=device))

    def bits_at(self, run: BitWidth) -> BitWidth:
        """This layer's own bits in a run of the model at `run`."""
        return self.rule.resolve(run)

    def quantized_input(self, values: Tensor) -> Tensor:
        """Observe the input's range, or put the input on its grid, as the mode asks."""
        if self.mode.observing:
            self._observe(values.detach())
        bits = self.bits_at(self.mode.bit_width).activation
        if bits == FLOAT_BITS:
            return values
        scale, zero_point = activation_qparams(self.activation_min, self.activation_max, bits)
        return fake_quantize_activation(values, scale, zero_point, bits)

    def quantized_weight(self) -> Tensor:
        """The weight on the grid of the current run; computed once a run when the run reuses weights."""
        bits = self.bits_at(self.mode.bit_width).weight
        if bits == FLOAT_BITS:
            return self.weight
        if self.mode.weights is None:
            return fake_quantize_weight(self.weight, bits)
        if id(self) not in self.mode.weights:
            self.mode.weights[id(self)] = fake_quantize_weight(self.weight, bits)
        return self.mode.weights[id(self)]

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        mask = _VALID.get()
        if mask is not None and values.dim() == 3 and values.shape[:2] == mask.shape:
            # Zero is in every range, so a zeroed frame cannot widen it.
            values = values.masked_fill(~mask.unsqueeze(-1), 0)
        low, high = values.aminmax()
        self.activation_min.copy_(torch.minimum(self.activation_min, low))
        self.activation_max.copy_(torch.maximum(self.activation_max, high))
        self.calibrated = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.calibrated = False
        super()._load_from_state_dict(*args, **kwargs)


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear whose input and weight follow the bit-width of the run."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return F.linear(self.quantized_input(input), self.quantized_weight(), self.bias)


class QuantConv1d(QuantLayer, nn.Conv1d):
    """nn.Conv1d whose input and weight follow the bit-width of the run."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in, time) to (batch, out, time')."""
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), self.bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d whose input and weight follow the bit-width of the run."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in, height, width) to (batch, out, height', width')."""
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), self.bias)


QUANTIZED_FORM: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
}
