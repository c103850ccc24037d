"""Quantized forms of Conv1d, Conv2d and Linear: the same layer object, seen at the bit-width of the run."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.activation import Mode, QuantActivation
from quant.bits import FLOAT_BITS, INTEGER_BITS, BitWidth, parse_bit_width
from quant.grid.affine import SMALLEST_SCALE, dequantize, fake_quantize_tokens, quantize
from quant.grid.lsq import fake_quantize_learned
from quant.grid.weights import as_rows, best_clip_ratio, fake_quantize_weight, quantize_weight, weight_scale
from quant.learned_run import LearnedRun
from quant.policy import LayerRule

# Power of a channel's largest input; its largest weight has the rest. Best of 0.5, 0.6, 0.7 and 1 on Whisper base.
SMOOTHING = 0.6
# Of the mean over channels: what is hardly used on these data is used on others. On Whisper base 0.01 costs 60 % more.
LEAST_USE = 0.3


def _correction_name(run: BitWidth) -> str:
    return f"bias_correction_{run}"


def _rounding_names(run: BitWidth) -> tuple[str, str]:
    return f"weight_integers_{run}", f"weight_scale_{run}"


class QuantLayer(QuantActivation):
    """What the quantized forms of layers with a weight share.

    The weight and bias stay the Parameters of the layer that was prepared; nothing is copied.

    Attributes:
        weight_step: Parameter, shape (rows, 1, ...), the learned scales; None until `quant.learn_steps`.
        corrected: bit-widths that have a bias correction, a buffer of shape (out,) each: see `quant.correct_bias`.
        rounded: bit-widths whose integers were chosen on data, buffers of the weight's shape, int8, and of the scales,
            shape (out, groups): see `quant.round_weights`. The others round to the nearest.
        learned: what bit-widths learn of their own, by their names: see `quant.learn_bit_widths`.
    """

    weight: Tensor
    weight_step: nn.Parameter | None
    corrected: tuple[BitWidth, ...] = ()
    rounded: tuple[BitWidth, ...] = ()
    learned: nn.ModuleDict

    # Of the outputs.
    channels_axis = 1

    def attach(self, rule: LayerRule, mode: Mode, device: torch.device) -> None:
        """Add rule, mode and range buffers to a layer whose class has just become a quantized one."""
        super().attach(rule, mode, device)
        self.register_parameter("weight_step", None)
        self.learned = nn.ModuleDict()

    def detach(self) -> None:
        """Undo `attach`, `add_steps`, `add_correction`, `add_rounding` and `learn_run`."""
        self.drop_corrections()
        del self.learned
        super().detach()

    def add_steps(self, bits: BitWidth) -> None:
        """Make Parameters of the scales at this bit-width: see `quant.learn_steps`."""
        super().add_steps(bits)
        if bits.weight != FLOAT_BITS:
            rows = as_rows(self.spread_weight(bits).detach(), self.rule.granularity)
            self.weight_step = nn.Parameter(weight_scale(rows, bits.weight, self._clip_ratio(rows, bits.weight)))

    def add_correction(self, run: BitWidth, values: Tensor | None = None) -> None:
        """A bias correction for a run of the model, shape (out,); of zeros when None."""
        values = torch.zeros(len(self.weight), device=self.weight.device) if values is None else values
        self.register_buffer(_correction_name(run), values)
        self.corrected = tuple(dict.fromkeys([*self.corrected, run]))

    def add_rounding(self, run: BitWidth, integers: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Integers and scales of the weight's own for a run of the model; the nearest ones when None.

        Args:
            run: of the model.
            integers: int8, the weight's shape; of `spread_weight`.
            scale: shape (out, groups), float32.
        """
        if self.bits_at(run).weight == FLOAT_BITS:
            return
        if integers is None or scale is None:
            self.rounded = tuple(each for each in self.rounded if each != run)
            integers, scale = self.weight_integers(run)
        for name, values in zip(_rounding_names(run), (integers, scale), strict=True):
            self.register_buffer(name, values.to(self.weight.device).contiguous())
        self.rounded = tuple(dict.fromkeys([*self.rounded, run]))

    @property
    def learning(self) -> list[BitWidth]:
        """The bit-widths that learn scales and a bias correction of their own."""
        return [parse_bit_width(name) for name in self.learned]

    def learn_run(self, run: BitWidth, offsets: bool = False) -> None:
        """Scales and a bias correction of its own for a run of the model, and offsets where asked: see `LearnedRun`.

        They begin with the integers, scales and correction that were found on data, if some were; otherwise scales fit
        the weight, and the correction is zero.
        """
        bits, integers = self.bits_at(run).weight, None
        rows = as_rows(self.spread_weight(run).detach(), self.rule.granularity)
        if run in self.rounded:
            integers, chosen = self.weight_integers(run)
            # One scale for all outputs is stored once for each.
            scale = chosen.flatten()[: len(rows)].view([-1] + [1] * (rows.dim() - 1))
            integers = as_rows(integers, self.rule.granularity)
        elif bits != FLOAT_BITS:
            scale = weight_scale(rows, bits, best_clip_ratio(rows, bits))
        else:
            scale = weight_scale(rows, max(INTEGER_BITS))  # for the noise that its bias learns in units of
        correction = self.correction(run) if run in self.corrected else rows.new_zeros(len(self.weight))
        self.drop_run(run)
        self.learned[str(run)] = LearnedRun(rows, scale, correction, integers, offsets)

    def settle_run(self, run: BitWidth) -> None:
        """Turn what a run of the model has learned into its integers, scales and correction: buffers."""
        (integers, scale), correction = self.weight_integers(run), self.correction(run).detach()
        del self.learned[str(run)]
        self.add_rounding(run, integers, scale)
        self.add_correction(run, correction)

    def drop_corrections(self) -> None:
        """Forget the bias corrections and the chosen integers of all bit-widths."""
        for run in {*self.corrected, *self.rounded}:
            self.drop_run(run)

    def drop_run(self, run: BitWidth) -> None:
        """Forget the bias correction and the chosen integers of one run of the model."""
        for name in (_correction_name(run), *_rounding_names(run)):
            self._buffers.pop(name, None)
        self.corrected = tuple(each for each in self.corrected if each != run)
        self.rounded = tuple(each for each in self.rounded if each != run)

    def correction(self, run: BitWidth) -> Tensor:
        """What is taken off the bias in a run of the model, shape (out,)."""
        learned = self._learned(run)
        return self.get_buffer(_correction_name(run)) if learned is None else learned.correction

    def bias_at(self, run: BitWidth) -> Tensor | None:
        """The bias in a run of the model, shape (out,), less its correction; None without both."""
        bias: Tensor | None = self._parameters["bias"]
        if run not in self.corrected and self._learned(run) is None:
            return bias
        correction = self.correction(run)
        return -correction if bias is None else bias - correction

    def output_means(self, output: Tensor) -> Tensor:
        """Mean of each output channel over everything but padding, shape (out,)."""
        values, valid = output.movedim(self.channels_axis, -1), self._valid(output)
        if valid is None:
            return values.flatten(0, -2).mean(dim=0)
        weights = valid.movedim(self.channels_axis, -1).expand(*values.shape[:-1], 1)
        return (values * weights).flatten(0, -2).sum(dim=0) / weights.sum().clamp_min(1)

    def along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        """Values (out,) in a form that broadcasts to an output."""
        shape = [1] * output.dim()
        shape[self.channels_axis] = -1
        return values.view(shape)

    def spread_at(self, run: BitWidth) -> Tensor | None:
        """What each input channel is divided by in a run of the model, shape (in,); None where inputs stay."""
        return None if self.bits_at(run).activation == FLOAT_BITS else self.activation_spread

    def spread_weight(self, run: BitWidth) -> Tensor:
        """The weight times the spread: what meets divided inputs in a run of the model, and is put on a grid."""
        spread = self.spread_at(run)
        # A copy: an observation of this very pass sets another spread before the backward pass.
        return self.weight if spread is None else self.weight * spread.clone()

    def weight_integers(self, run: BitWidth) -> tuple[Tensor, Tensor]:
        """Integers and scale of `spread_weight` in a run of the model: those every export stores.

        Returns:
            int8 integers, shape (out, in, ...); scale, shape (out, groups): one group unless `per_group_<g>`.
        """
        if run in self.rounded:
            integers, scale = map(self.get_buffer, _rounding_names(run))
            return integers, scale
        bits, learned = self.bits_at(run).weight, self._learned(run)
        rows = as_rows(self.spread_weight(run).detach(), self.rule.granularity)
        if learned is not None:
            integers, scale = learned.quantized(rows, bits)
        elif self.weight_step is not None:
            scale = self.weight_step.detach().clamp_min(SMALLEST_SCALE)
            integers = quantize(rows, scale, 0, bits, signed=True)
        else:
            integers, scale = quantize_weight(rows, bits, self._clip_ratio(rows, bits))
        out = len(self.weight)
        return integers.view_as(self.weight), scale.view(out, -1) if len(rows) > 1 else scale.view(1, 1).expand(out, 1)

    def quantized_weight(self) -> Tensor:
        """`spread_weight` on the grid of the current run; computed once a run when the run reuses weights."""
        run = self.mode.run
        if self.bits_at(run.bit_width).weight == FLOAT_BITS:
            return self.spread_weight(run.bit_width)
        if run.weights is None:
            return self._fake_quantized(run.bit_width)
        if id(self) not in run.weights:
            run.weights[id(self)] = self._fake_quantized(run.bit_width)
        return run.weights[id(self)]

    def weight_at(self, run: BitWidth) -> Tensor:
        """The weight as it acts on undivided inputs in a run of the model, float32, without a gradient."""
        if self.bits_at(run).weight == FLOAT_BITS:
            return self.weight.detach().float()
        weight, spread = self._dequantized(run), self.spread_at(run)
        return weight if spread is None else weight / spread

    def seen(self, values: Tensor) -> Tensor:
        """What the weight meets in the current run: an input of any shape, on its grid."""
        bits = self.bits_at(self.mode.run.bit_width).activation
        return values if bits == FLOAT_BITS else self.denormalized(self.on_grid(self.normalized(values), bits))

    def _fake_quantized(self, run: BitWidth) -> Tensor:
        if run in self.rounded:
            return self._dequantized(run).to(self.weight.dtype)
        bits, learned = self.bits_at(run).weight, self._learned(run)
        rows = as_rows(self.spread_weight(run), self.rule.granularity)
        if learned is not None:
            quantized = learned.fake_quantized(rows, bits)
        elif self.weight_step is not None:
            count = rows[0].numel()
            quantized = fake_quantize_learned(rows, self.weight_step, 0, bits, signed=True, count=count)
        else:
            quantized = fake_quantize_weight(rows, bits, self._clip_ratio(rows, bits))
        return quantized.view_as(self.weight)

    def _learned(self, run: BitWidth) -> LearnedRun | None:
        """What a run of the model has learned so far."""
        found: LearnedRun | None = self.learned._modules.get(str(run))  # type: ignore[assignment]
        return found

    def _dequantized(self, run: BitWidth) -> Tensor:
        integers, scale = self.weight_integers(run)
        return dequantize(integers.view(*scale.shape, -1), scale.unsqueeze(-1)).view_as(self.weight)

    def _clip_ratio(self, rows: Tensor, bits: int) -> Tensor | None:
        return best_clip_ratio(rows, bits) if self.rule.weight_range == "mse" else None


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear whose input and weight follow the bit-width of the run."""

    channels_axis = -1

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        """Whether each token has a range of its own, found as it passes."""
        return self.rule.activation_range == "per_token"

    @property
    def has_static_range(self) -> bool:  # type: ignore[override]
        """Whether the range is found by observation."""
        return not self.per_token

    def attach(self, rule: LayerRule, mode: Mode, device: torch.device) -> None:
        """Add rule, mode and buffers to a layer whose class has just become a quantized one."""
        super().attach(rule, mode, device)
        if rule.shift:
            self.activation_shift = torch.zeros(self.in_features, device=device)
        if rule.smooth:
            self.activation_spread = torch.ones(self.in_features, device=device)

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        bits, bias = self.bits_at(self.mode.run.bit_width).activation, self.bias_at(self.mode.run.bit_width)
        if not self.by_channel or bits == FLOAT_BITS:
            return F.linear(self.quantized_input(input), self.quantized_weight(), bias)
        self.observe(input)
        weight = self.quantized_weight()
        shift = self.normalized_shift()
        if shift is not None:
            shifted = weight @ shift
            bias = shifted if bias is None else bias + shifted
        return F.linear(self.on_grid(self.normalized(input), bits), weight, bias)

    def normalized_shift(self) -> Tensor | None:
        """The shift divided by the spread, shape (in,): its product with `spread_weight` is what the bias gets."""
        # Copies: an observation of this very pass sets another shift before the backward pass.
        if self.activation_shift is None or self.activation_spread is None:
            return None if self.activation_shift is None else self.activation_shift.clone()
        return self.activation_shift / self.activation_spread

    def spread_for(self, largest: Tensor) -> Tensor:
        """SmoothQuant's spread (Xiao et al. 2023, Eq. 4) of inputs that are at most this large, with a mean of 1."""
        inputs, weights = _by_mean(largest), _by_mean(self.weight.detach().float().abs().amax(dim=0))
        spread = inputs**SMOOTHING / weights ** (1 - SMOOTHING)
        return spread / spread.mean()

    def on_grid(self, values: Tensor, bits: int) -> Tensor:
        """Values (..., in) on the grid of the ranges, of each token's own range, or of the learned step."""
        return fake_quantize_tokens(values, bits) if self.per_token else super().on_grid(values, bits)


class QuantConv1d(QuantLayer, nn.Conv1d):
    """nn.Conv1d whose input and weight follow the bit-width of the run."""

    frames_axis = 2

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in, time) to (batch, out, time')."""
        bias = self.bias_at(self.mode.run.bit_width)
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d whose input and weight follow the bit-width of the run."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, in, height, width) to (batch, out, height', width')."""
        bias = self.bias_at(self.mode.run.bit_width)
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), bias)


def _by_mean(values: Tensor) -> Tensor:
    """Values (channels,), none of them negative, in units of their mean, at least `LEAST_USE`."""
    return (values / values.mean().clamp_min(SMALLEST_SCALE)).clamp_min(LEAST_USE)


QUANTIZED_FORM: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
}
