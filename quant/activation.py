"""A tensor that quantizes where it passes: how a model runs just now, padding, and the range of one activation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quant.bits import FLOAT_BITS, FULL_PRECISION, INTEGER_BITS, BitWidth, row_of
from quant.grid.affine import SMALLEST_SCALE, activation_qparams, fake_quantize_activation
from quant.grid.lsq import fake_quantize_learned
from quant.policy import LayerRule, Policy

# Buffers and Parameters that quantized forms add begin with these.
OWN_STATE = ("activation_", "weight_")
RANGE_BUFFERS = ("activation_min", "activation_max")
_VALID: ContextVar[Tensor | None] = ContextVar("valid_frames", default=None)


class Recorder(Protocol):
    """What a model's passes are shown to while ranges are being found."""

    def record(self, activation: "QuantActivation", values: Tensor, valid: Tensor | None) -> None:
        """Keep what is needed of one pass: values of any shape, valid False in padding (None: nothing is padded)."""


@dataclass(frozen=True)
class Run:
    """How the layers of one prepared model run just now, in one thread."""

    bit_width: BitWidth = FULL_PRECISION
    observation: Recorder | None = None
    # Quantized weights by layer, when the run asked to reuse them.
    weights: dict[int, Tensor] | None = None


_RESTING = Run()
# Each thread (and asyncio task) has its own: two may run one model at different bit-widths.
RUNS: ContextVar[Mapping["Mode", Run]] = ContextVar("runs", default=MappingProxyType({}))


@dataclass(eq=False)
class Mode:
    """What the layers of one prepared model share: their policy, and how they run just now."""

    policy: Policy = field(default_factory=Policy)
    # The one bit-width whose steps are learned.
    learned: BitWidth | None = None

    @property
    def run(self) -> Run:
        """As this thread runs it; full precision where nothing else was asked for."""
        return RUNS.get().get(self, _RESTING)


@contextmanager
def running(modes: Sequence[Mode], **changes: Any) -> Iterator[None]:
    """Inside, this thread runs models with some attributes of `Run` changed.

    Args:
        modes: of the models.
        changes: attributes of `Run`.
    """
    before = {mode: {name: getattr(mode.run, name) for name in changes} for mode in modes}
    _set_runs({mode: changes for mode in modes})
    try:
        yield
    finally:
        # Not by a token: a generator may be closed in another context than the one it was entered in.
        _set_runs(before)


def _set_runs(changes: Mapping[Mode, Mapping[str, Any]]) -> None:
    runs = dict(RUNS.get())
    for mode, values in changes.items():
        runs[mode] = replace(mode.run, **values)
        if runs[mode] == _RESTING:
            del runs[mode]
    RUNS.set(runs)


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


class QuantActivation(nn.Module):
    """A tensor that is observed or put on its grid where it passes: a rule, the shared mode and its range.

    Attributes:
        activation_min: buffer, shape (7,), low end of the range at 2, 3, ... 8 bits (+inf before any observation).
        activation_max: buffer, shape (7,), high end of the range (-inf before any observation).
        activation_shift: buffer, shape (channels,), taken off each channel before quantizing: of linear layers where
            the policy shifts them, and of attention's keys and values; None elsewhere. The range is that of what is
            left.
        activation_spread: buffer, shape (channels,), by which what is left of each channel is divided: of linear layers
            where the policy smooths them, and of attention's values; None elsewhere.
        activation_step: Parameter, shape (), the learned scale; None until `quant.learn_steps`.
        activation_zero_point: buffer, shape (), int32, beside a learned scale.
    """

    rule: LayerRule
    mode: Mode
    activation_min: Tensor
    activation_max: Tensor
    activation_shift: Tensor | None
    activation_spread: Tensor | None
    activation_step: nn.Parameter | None
    activation_zero_point: Tensor
    # Bit-widths whose range is known to be there: looking at the buffers would wait for the device.
    calibrated: frozenset[int] = frozenset()
    # Whether a range is found by observation.
    has_static_range = True
    # Whether each token has a range of its own, found as it passes.
    per_token = False
    # Axis of the values along which `valid_frames` tells padding.
    frames_axis = 1

    def attach(self, rule: LayerRule, mode: Mode, device: torch.device) -> None:
        """Add rule, mode and range buffers to a module whose class has just become a quantized one."""
        self.rule, self.mode = rule, mode
        self.register_buffer("activation_min", torch.full((len(INTEGER_BITS),), torch.inf, device=device))
        self.register_buffer("activation_max", torch.full((len(INTEGER_BITS),), -torch.inf, device=device))
        self.register_buffer("activation_shift", None)
        self.register_buffer("activation_spread", None)
        self.register_parameter("activation_step", None)

    def add_steps(self, bits: BitWidth) -> None:
        """Make a Parameter of the scale at this bit-width: see `quant.learn_steps`."""
        if bits.activation != FLOAT_BITS and self.has_static_range:
            scale, zero_point = self.activation_qparams(bits.activation)
            self.activation_step = nn.Parameter(scale)
            self.register_buffer("activation_zero_point", zero_point)

    def detach(self) -> None:
        """Undo `attach` and `add_steps`."""
        for name in [name for name in (*self._buffers, *self._parameters) if name.startswith(OWN_STATE)]:
            delattr(self, name)
        del self.rule, self.mode
        self.calibrated = frozenset()

    def bits_at(self, run: BitWidth) -> BitWidth:
        """Its own bits in a run of the model at `run`."""
        return self.rule.resolve(run)

    def bits_in_use(self, run: BitWidth | None) -> tuple[int, ...]:
        """Activation bits below float in a run, or in any run when None."""
        if run is None and self.rule.activation is None:
            return INTEGER_BITS
        bits = self.rule.activation if run is None else self.bits_at(run).activation
        return () if bits is None or bits == FLOAT_BITS else (bits,)

    def activation_qparams(self, bits: int) -> tuple[Tensor, Tensor]:
        """Scale, shape (), and zero point, shape (), int32, at a bit-width: those every export stores."""
        if self.activation_step is not None:
            return self.activation_step.detach().clamp_min(SMALLEST_SCALE), self.activation_zero_point
        return activation_qparams(self.activation_min[row_of(bits)], self.activation_max[row_of(bits)], bits)

    def quantized_input(self, values: Tensor) -> Tensor:
        """Observe the values, or put them on their grid, as the mode asks."""
        self.observe(values)
        bits = self.bits_at(self.mode.run.bit_width).activation
        return values if bits == FLOAT_BITS else self.on_grid(values, bits)

    def observe(self, values: Tensor) -> None:
        """Hand the values to the observation that is going on, if one is and they need a range."""
        if self.mode.run.observation is not None and self.has_static_range:
            self._record(values.detach(), self._valid(values))

    def _record(self, values: Tensor, valid: Tensor | None) -> None:
        assert self.mode.run.observation is not None
        self.mode.run.observation.record(self, values, valid)

    @property
    def by_channel(self) -> bool:
        """Whether something is to be found for each channel, before the range of what is left is."""
        return self.activation_shift is not None or self.activation_spread is not None

    def spread_for(self, largest: Tensor) -> Tensor:
        """The spread of channels that are at most this far from their shift, shape (channels,)."""
        return largest.clamp_min(SMALLEST_SCALE)

    def normalized(self, values: Tensor) -> Tensor:
        """What is put on the grid: values (..., channels) less the shift, divided by the spread."""
        values = values if self.activation_shift is None else values - self.activation_shift
        # As the exported file does: a product is faster there than a quotient.
        return values if self.activation_spread is None else values * self.activation_spread.reciprocal()

    def denormalized(self, values: Tensor) -> Tensor:
        """The way back."""
        values = values if self.activation_spread is None else values * self.activation_spread
        return values if self.activation_shift is None else values + self.activation_shift

    def on_grid(self, values: Tensor, bits: int) -> Tensor:
        """The values on the grid of the ranges, or of the learned step."""
        if self.activation_step is not None:
            count = values[0].numel()
            return fake_quantize_learned(
                values, self.activation_step, self.activation_zero_point, bits, signed=False, count=count
            )
        scale, zero_point = self.activation_qparams(bits)
        return fake_quantize_activation(values, scale, zero_point, bits)

    def _valid(self, values: Tensor) -> Tensor | None:
        """The mask of `valid_frames` in a form that broadcasts to values (batch, ..., time, ...)."""
        mask, axis = _VALID.get(), self.frames_axis
        if mask is None or values.dim() < 3 or (values.shape[0], values.shape[axis]) != mask.shape:
            return None
        return mask.view([n if i in (0, axis) else 1 for i, n in enumerate(values.shape)])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.calibrated = frozenset()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class QuantIdentity(QuantActivation, nn.Identity):
    """nn.Identity whose tensor follows the activation bits of the run: (batch, heads, time, ...) in attention."""

    frames_axis = 2

    @property
    def in_use(self) -> bool:
        """Whether the run observes or quantizes the tensor."""
        return self.mode.run.observation is not None or self.bits_at(self.mode.run.bit_width).activation != FLOAT_BITS

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        return self.quantized_input(input)
