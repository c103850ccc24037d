"""Which layer runs at which bits on which grid: rules that hold for any network, and overrides by layer name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from quant.bits import FLOAT_BITS, BitWidth, check_bits
from quant.checks import check_choice
from quant.grid.weights import GRANULARITIES, WEIGHT_RANGES, Granularity, WeightRange

ActivationRange = Literal["static", "per_token"]
ACTIVATION_RANGES: tuple[ActivationRange, ...] = get_args(ActivationRange)
SMOOTH = "smooth"
_OVERRIDE = re.compile(r"(?P<bits>fp|(?:w(?P<weight>\d+))?(?:a(?P<activation>\d+))?)(?P<grids>(?:/\w+)*)", re.ASCII)


@dataclass(frozen=True)
class LayerRule:
    """Fixed bits of one layer (None follows the bit-width of the run), and the grid of its weight."""

    weight: int | None = None
    activation: int | None = None
    granularity: Granularity = "per_channel"
    weight_range: WeightRange = "min_max"
    shift: bool = False
    activation_range: ActivationRange = "static"
    smooth: bool = False

    @property
    def is_float(self) -> bool:
        """Whether the layer is left alone."""
        return self.weight == self.activation == FLOAT_BITS

    def resolve(self, run: BitWidth) -> BitWidth:
        """The layer's bits in a run; a full-precision run is full precision everywhere."""
        if run.weight == FLOAT_BITS and run.activation == FLOAT_BITS:
            return run
        return BitWidth(self.weight or run.weight, self.activation or run.activation)


def parse_rule(text: str, default: LayerRule = LayerRule()) -> LayerRule:
    """Read an override: `fp`, `w8a32` (both fixed), `w8` or `a8` (the other side follows the run).

    A granularity of the weight, a range of the activation and `smooth` may follow, `w4/per_group_32/per_token`, or
    stand alone, `/per_channel`, `/static/smooth`; all else is as in `default`.

    Raises:
        ValueError: anything else.
    """
    match = _OVERRIDE.fullmatch(text)
    if not text or not match:
        raise ValueError(f"unknown layer bit-width {text!r}: write fp, or like w8a8, w8a32, w8, a8, w4/per_group_32")
    for grid in match["grids"].split("/")[1:]:
        check_choice("grid", grid, (*GRANULARITIES, *ACTIVATION_RANGES, SMOOTH))
        if grid == SMOOTH:
            default = replace(default, smooth=True)
            continue
        field = "activation_range" if grid in ACTIVATION_RANGES else "granularity"
        default = replace(default, **{field: grid})  # type: ignore[arg-type]
    if match["bits"] == "fp":
        return replace(default, weight=FLOAT_BITS, activation=FLOAT_BITS)
    for number in match.group("weight", "activation"):
        if number is not None:
            check_bits(int(number), f"bits in {text!r}")
    weight, activation = (int(number) if number else None for number in match.group("weight", "activation"))
    return replace(default, weight=weight, activation=activation)


@dataclass(frozen=True)
class Policy:
    """Per-layer bit-widths and grids of a prepared model.

    Every Conv1d, Conv2d and Linear quantizes its weight and its input at the bits of the run. The sums of
    residual streams and normalizations stay in float. (The published ResNet list quantizes block outputs;
    their convolutions' inputs are the same tensors.)

    Args:
        first_layer: override for the model's first layer. The published rule is 8-bit weights, one scale
            for each output channel, and an input that is not quantized.
        layers: layer-name pattern (`projector.*`, `*.mlp.2`) to override; the last match wins.
        granularity: weights that share a scale: `per_tensor`, `per_channel` (published), or `per_group_32`,
            `_64`, `_128`: that many neighbours along the inputs.
        weight_range: `min_max` (published), or `mse`: each scale's range is clipped where that lowers the
            squared error.
        attention: quantize query, key, exponentials and value of attention products at the run's
            activation bits; the patterns of `layers` match their names (`*.attn.products.exponentials`).
        shift: linear layers take each input channel's mean off before they quantize, and add its product to the
            bias: the same layer in full precision, and a much finer grid where channels hover around means of
            their own (Outlier Suppression+, Wei et al. 2023, there with the middle of each channel's range).
        activation_range: `static` (published), one range for a layer's input, found by calibration; or `per_token`,
            linear layers take the range of each token as it passes (of each frame of speech, each patch of an image),
            and need no calibration. Convolutions and attention products keep static ranges.
        smooth: linear layers divide each input channel by a number of its own before they quantize, and multiply the
            weight's column by it: the same layer in full precision, and one static range then holds channels of very
            different sizes (SmoothQuant, Xiao et al. 2023, Sec. 4). Calibration finds the numbers.

    Raises:
        ValueError: an unknown word, or bits that no grid has.
    """

    first_layer: str = "w8a32"
    layers: Mapping[str, str] = field(default_factory=dict)
    granularity: Granularity = "per_channel"
    weight_range: WeightRange = "min_max"
    attention: bool = False
    shift: bool = False
    activation_range: ActivationRange = "static"
    smooth: bool = False

    def __post_init__(self) -> None:
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("weight_range", self.weight_range, WEIGHT_RANGES)
        check_choice("activation_range", self.activation_range, ACTIVATION_RANGES)
        parse_rule(self.first_layer)
        for pattern, text in self.layers.items():
            try:
                parse_rule(text)
            except ValueError as error:
                raise ValueError(f"layer pattern {pattern!r}: {error}") from None

    def rules(self, names: Sequence[str]) -> dict[str, LayerRule]:
        """The rule of each layer, given the layers' names in the order the model registers them.

        Raises:
            ValueError: a pattern that matches no layer.
        """
        default = LayerRule(
            granularity=self.granularity,
            weight_range=self.weight_range,
            shift=self.shift,
            activation_range=self.activation_range,
            smooth=self.smooth,
        )
        rules = dict.fromkeys(names, default)
        if names:
            rules[names[0]] = parse_rule(self.first_layer, replace(default, granularity="per_channel"))
        for pattern, text in self.layers.items():
            matches = [name for name in names if fnmatchcase(name, pattern)]
            if not matches:
                known = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                raise ValueError(f"layer pattern {pattern!r} matches no layer; the layers are: {known}")
            rules |= dict.fromkeys(matches, parse_rule(text, default))
        return rules

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `Policy(**values)` reads them back."""
        return asdict(self) | {"layers": dict(self.layers)}
