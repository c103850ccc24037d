"""Export forms of the quantized layers: integers and scales in, ONNX quantization operators out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from export.graph.attention import IntegerAttention, dequantized, unfolded
from export.metadata import OPSET
from quant import AttentionProducts, BitWidth, QuantActivation, QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quant.attention import QuantHeadChannels, by_head
from quant.bits import FLOAT_BITS
from quant.grid.affine import dequantize, token_qparams

WEIGHT, WEIGHT_SCALE = "weight_integers", "weight_scale"
ACTIVATION_SCALE, ACTIVATION_ZERO_POINT = "activation_scale", "activation_zero_point"
ACTIVATION_SHIFT, ACTIVATION_SPREAD = "activation_shift", "activation_spread"
ACTIVATION_FACTOR = "activation_factor"


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class QdqActivation(nn.Module):
    """A tensor at fixed bits; in ONNX: QuantizeLinear and DequantizeLinear, or operators that find a token's range.

    Args:
        activation: calibrated.
        run: bit-width of the model's run; its own bits follow its policy.
        signed: store integers 128 lower, as int8: the same grid. ONNX Runtime multiplies uint8 by int8 at twice the
            speed of uint8 by uint8, and the right side of an attention product is an activation.
    """

    def __init__(self, activation: QuantActivation, run: BitWidth, signed: bool = False) -> None:
        super().__init__()
        self.bits: BitWidth = activation.bits_at(run)
        self.in_use = self.bits.activation != FLOAT_BITS
        self.dtype = torch.int8 if signed else torch.uint8
        self.per_token = self.in_use and activation.per_token
        if self.in_use and not self.per_token:
            scale, zero_point = activation.activation_qparams(self.bits.activation)
            self.register_buffer(ACTIVATION_SCALE, scale)
            self.register_buffer(ACTIVATION_ZERO_POINT, (zero_point - 128 * signed).to(self.dtype))
            self.activation_range = activation_range(scale, zero_point, self.bits.activation)

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape, on the grid."""
        if not self.in_use:
            return values
        if self.per_token:
            integers, scale, zero_point = self.quantize_tokens(values)
            return (integers - zero_point) * scale
        qparams = self.get_buffer(ACTIVATION_SCALE), self.get_buffer(ACTIVATION_ZERO_POINT)
        return dequantized((self.quantize(values), *qparams), values.shape)

    def quantize_tokens(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integers as floats, shape (..., channels); scale and zero point of each token, both (..., 1)."""
        scale, zero_point = token_qparams(values, self.bits.activation)
        integers = ((values / scale).round() + zero_point).clamp(0, 2**self.bits.activation - 1)
        return integers, scale, zero_point

    def quantize(self, values: Tensor) -> Tensor:
        """Values of any shape to integers."""
        if self.bits.activation < 8:
            # The operators know 8 bits; a narrower grid is the same grid, clipped before.
            values = values.clamp(*self.activation_range)
        scale, zero_point = self.get_buffer(ACTIVATION_SCALE), self.get_buffer(ACTIVATION_ZERO_POINT)
        if self.dtype == torch.int8:
            # A plain scale would move up to the layer before, whose integer kernel gives no int8.
            scale = unfolded(scale)
        inputs = values, scale, zero_point
        return symbolic("::QuantizeLinear", inputs, dtype=self.dtype, shape=values.shape, version=OPSET)


class QdqHeadChannels(QdqActivation):
    """Keys or values of attention: their deviations from the channels' means, in units of the spread."""

    def __init__(self, tensor: QuantHeadChannels, run: BitWidth) -> None:
        # The right side of a product.
        super().__init__(tensor, run, signed=True)
        self.register_buffer(ACTIVATION_SHIFT, tensor.activation_shift if self.in_use else None)
        self.register_buffer(ACTIVATION_SPREAD, tensor.activation_spread if self.in_use else None)

    def normalized(self, values: Tensor) -> Tensor:
        """Shape (batch, heads, time, width), before it is quantized."""
        shift, spread = self._buffers[ACTIVATION_SHIFT], self._buffers[ACTIVATION_SPREAD]
        values = values if shift is None else values - by_head(shift, values)
        return values if spread is None else values / by_head(spread, values)

    def restored(self, attended: Tensor) -> Tensor:
        """What was taken off values given back to their product with probabilities."""
        shift, spread = self._buffers[ACTIVATION_SHIFT], self._buffers[ACTIVATION_SPREAD]
        attended = attended if spread is None else attended * by_head(spread, attended)
        return attended if shift is None else attended + by_head(shift, attended)


class QdqLayer(QdqActivation):
    """One layer at fixed bits; in ONNX: QuantizeLinear and DequantizeLinear before an ordinary product.

    ONNX Runtime fuses the three into integer kernels. Linear weights are stored transposed, (in, out), so
    that nothing stands between the integers and the MatMul. Inputs with a range for each token go into MatMulInteger,
    and their scales and zero points into its result. Weights in groups have no integer products: the same numbers
    multiply in float.

    | granularity | shape of the integers | shape of the scale | DequantizeLinear |
    | --- | --- | --- | --- |
    | per_channel, per_tensor | (in, out) | (out,) | axis 1 |
    | | (out, in, ...) of a convolution | (out,) | axis 0 |
    | per_group_<g> | (in, out) | (in / g, out) | axis 0, block_size g |
    | | (out, in * ...) of a convolution | (out, in * ... / g) | axis 1, block_size g |

    Args:
        layer: calibrated quantized layer.
        run: bit-width of the model's run; the layer's own bits follow its policy.

    Raises:
        ValueError: a padding that ONNX does not have.
    """

    bias: Tensor | None
    activation_shift: Tensor | None
    activation_factor: Tensor | None

    def __init__(self, layer: QuantLayer, run: BitWidth) -> None:
        super().__init__(layer, run)
        self.product: Product = _product(layer)
        self.weight_shape = layer.weight.shape
        self.is_linear = isinstance(layer, QuantLinear)
        bias = layer.bias_at(run)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer(ACTIVATION_SHIFT, layer.activation_shift if self.in_use else None)
        spread = layer.spread_at(run)
        self.register_buffer(ACTIVATION_FACTOR, None if spread is None else spread.reciprocal())
        self.axis: dict[str, Any] = {}
        if self.bits.weight == FLOAT_BITS:
            weight = layer.spread_weight(run).detach()
            # A view: large models would be in memory twice.
            self.register_buffer("weight", weight.T if self.is_linear else weight)
            on_grid = weight
        else:
            integers, scale = layer.weight_integers(run)
            on_grid = None
            if self.activation_shift is not None:
                on_grid = dequantize(integers.view(*scale.shape, -1), scale.unsqueeze(-1)).view_as(layer.weight)
            self.axis = {"axis": int(self.is_linear)}
            if scale.shape[1] == 1:
                scale = scale.flatten()
            else:
                integers = integers.flatten(1)
                self.axis = {"axis": int(not self.is_linear), "block_size": integers.shape[1] // scale.shape[1]}
            self.register_buffer(WEIGHT, integers.T.contiguous() if self.is_linear else integers)
            self.register_buffer(WEIGHT_SCALE, scale.T.contiguous() if scale.dim() == 2 and self.is_linear else scale)
        self.in_integers = self.in_use and self.bits.weight != FLOAT_BITS and "block_size" not in self.axis
        if self.per_token and self.in_integers:
            self.register_buffer("weight_sum", self.get_buffer(WEIGHT).sum(dim=0, dtype=torch.float32) * scale)
        if self.activation_shift is not None and on_grid is not None:
            shifted = on_grid @ (self.activation_shift if spread is None else self.activation_shift / spread)
            self.bias = shifted if self.bias is None else self.bias + shifted

    def forward(self, values: Tensor) -> Tensor:
        """As the layer it came from."""
        if self.activation_shift is not None:
            values = values - self.activation_shift
        if self.activation_factor is not None:
            values = values * self.activation_factor
        if self.per_token and self.in_integers:
            return self._token_product(values)
        return self.product(super().forward(values), self._weight(), self.bias)

    def _token_product(self, values: Tensor) -> Tensor:
        integers, scale, zero_point = self.quantize_tokens(values)
        weight = self.get_buffer(WEIGHT)
        shape = (*values.shape[:-1], weight.shape[1])
        product = symbolic(
            "::MatMulInteger", (integers.to(torch.uint8), weight), dtype=torch.int32, shape=shape, version=10
        ).float() * self.get_buffer(WEIGHT_SCALE)
        product = (product - zero_point * self.get_buffer("weight_sum")) * scale
        return product if self.bias is None else product + self.bias

    def _weight(self) -> Tensor:
        if self.bits.weight == FLOAT_BITS:
            return self.get_buffer("weight")
        integers, scale = self.get_buffer(WEIGHT), self.get_buffer(WEIGHT_SCALE)
        weight = dequantized((integers, scale), integers.shape, self.axis)
        return weight if self.is_linear else weight.view(self.weight_shape)


def to_qdq(model: nn.Module, run: BitWidth) -> dict[str, QdqLayer]:
    """Replace everything quantized in a model, in place, by its export form; returns those with a weight by name."""
    layers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantActivation):
            parent, _, child = name.rpartition(".")
            if isinstance(module, QuantLayer):
                form: QdqActivation = QdqLayer(module, run)
            elif isinstance(module, QuantHeadChannels):
                form = QdqHeadChannels(module, run)
            else:
                form = QdqActivation(module, run)
            setattr(model.get_submodule(parent), child, form)
            if isinstance(form, QdqLayer):
                layers[name] = form
    for name, module in list(model.named_modules()):
        if isinstance(module, AttentionProducts) and getattr(module.query, "in_use", False):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, IntegerAttention(module))
    return layers


def activation_range(scale: Tensor, zero_point: Tensor, bits: int) -> tuple[float, float]:
    """Smallest and largest float on the grid of `bits` bits; scale and zero_point have shape ()."""
    low, high = dequantize(torch.tensor([0, 2**bits - 1]), scale, zero_point).tolist()
    return low, high


def _product(layer: QuantLayer) -> Product:
    if isinstance(layer, QuantLinear):
        return lambda values, weight, bias: values @ weight if bias is None else values @ weight + bias
    if isinstance(layer, (QuantConv1d, QuantConv2d)):
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding mode {layer.padding_mode!r} of a convolution cannot be exported; use zeros")
        convolution = F.conv1d if isinstance(layer, QuantConv1d) else F.conv2d
        stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups
        return lambda values, weight, bias: convolution(values, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    raise TypeError(f"{type(layer).__name__} has no export form")
