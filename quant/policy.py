"""Which layer runs at which bits: rules that hold for any network, and overrides by layer name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from quant.bits import FLOAT_BITS, BitWidth, check_bits

_OVERRIDE = re.compile(r"(?:w(\d+))?(?:a(\d+))?")


@dataclass(frozen=True)
class LayerRule:
    """Fixed bits of one layer; None follows the bit-width of the run."""

    weight: int | None = None
    activation: int | None = None

    def resolve(self, run: BitWidth) -> BitWidth:
        """The layer's bits in a run; a full-precision run is full precision everywhere."""
        if run.weight == FLOAT_BITS and run.activation == FLOAT_BITS:
            return run
        return BitWidth(self.weight or run.weight, self.activation or run.activation)


def parse_rule(text: str) -> LayerRule:
    """Read an override: `fp`, `w8a32` (both fixed), `w8` or `a8` (the other side follows the run).

    Raises:
        ValueError: anything else.
    """
    if text == "fp":
        return LayerRule(FLOAT_BITS, FLOAT_BITS)
    match = _OVERRIDE.fullmatch(text)
    if not text or not match:
        raise ValueError(f"unknown layer bit-width {text!r}: write fp, or like w8a8, w8a32, w8, a8")
    for bits in match.groups():
        if bits is not None:
            check_bits(int(bits), f"bits in {text!r}")
    weight, activation = (int(bits) if bits else None for bits in match.groups())
    return LayerRule(weight, activation)


@dataclass(frozen=True)
class Policy:
    """Per-layer bit-widths of a prepared model.

    Every Conv1d, Conv2d and Linear quantizes its weight and its input at the bits of the run. The sums of
    residual streams, normalizations and attention products stay in float. (The published ResNet list
    quantizes block outputs; their convolutions' inputs are the same tensors.)

    Args:
        first_layer: override for the model's first layer. The published rule is 8-bit weights
            and an input that is not quantized.
        layers: layer-name pattern (`projector.*`, `*.mlp.2`) to override; the last match wins.
    """

    first_layer: str = "w8a32"
    layers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
        rules = {name: LayerRule() for name in names}
        if names:
            rules[names[0]] = parse_rule(self.first_layer)
        for pattern, text in self.layers.items():
            matches = [name for name in names if fnmatchcase(name, pattern)]
            if not matches:
                known = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                raise ValueError(f"layer pattern {pattern!r} matches no layer; the layers are: {known}")
            rules |= dict.fromkeys(matches, parse_rule(text))
        return rules

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `Policy(**values)` reads them back."""
        return asdict(self) | {"layers": dict(self.layers)}
