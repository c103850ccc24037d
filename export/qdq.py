"""Export forms of the quantized layers: integers and scales in, ONNX quantization operators out."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from quant import BitWidth, QuantActivation, QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quant.affine import dequantize, fake_quantize_activation
from quant.bits import FLOAT_BITS

QUANTIZATION_OPSET = 21
WEIGHT, WEIGHT_SCALE = "weight_integers", "weight_scale"
ACTIVATION_SCALE, ACTIVATION_ZERO_POINT = "activation_scale", "activation_zero_point"
ACTIVATION_SHIFT = "activation_shift"


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class QdqActivation(nn.Module):
    """A tensor at fixed bits; in ONNX: QuantizeLinear and DequantizeLinear.

    Args:
        activation: calibrated.
        run: bit-width of the model's run; its own bits follow its policy.
    """

    def __init__(self, activation: QuantActivation, run: BitWidth) -> None:
        super().__init__()
        self.bits: BitWidth = activation.bits_at(run)
        self.in_use = self.bits.activation != FLOAT_BITS
        if self.in_use:
            scale, zero_point = activation.activation_qparams(self.bits.activation)
            self.register_buffer(ACTIVATION_SCALE, scale)
            self.register_buffer(ACTIVATION_ZERO_POINT, zero_point.to(torch.uint8))
            self.activation_range = activation_range(scale, zero_point, self.bits.activation)

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        if not self.in_use:
            return values
        scale, zero_point = self.get_buffer(ACTIVATION_SCALE), self.get_buffer(ACTIVATION_ZERO_POINT)
        if not torch.onnx.is_in_onnx_export():
            return fake_quantize_activation(values, scale, zero_point.int(), self.bits.activation)
        if self.bits.activation < 8:
            # The operators know 8 bits; a narrower grid is the same grid, clipped before.
            values = values.clamp(*self.activation_range)
        integers = symbolic(
            "::QuantizeLinear", (values, scale, zero_point), dtype=torch.uint8, shape=values.shape,
            version=QUANTIZATION_OPSET,
        )  # fmt: skip
        return symbolic(
            "::DequantizeLinear", (integers, scale, zero_point), dtype=torch.float32, shape=values.shape,
            version=QUANTIZATION_OPSET,
        )  # fmt: skip


class QdqLayer(QdqActivation):
    """One layer at fixed bits; in ONNX: QuantizeLinear and DequantizeLinear before an ordinary product.

    ONNX Runtime fuses the three into integer kernels. Linear weights are stored transposed, (in, out), so
    that nothing stands between the integers and the MatMul.

    Args:
        layer: calibrated quantized layer.
        run: bit-width of the model's run; the layer's own bits follow its policy.

    Raises:
        ValueError: weights with more than one scale for an output channel, or a padding that ONNX does not have.
    """

    bias: Tensor | None
    activation_shift: Tensor | None

    def __init__(self, layer: QuantLayer, run: BitWidth) -> None:
        super().__init__(layer, run)
        self.product: Product = _product(layer)
        bias = layer.bias_at(run)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.channel_axis = 1 if isinstance(layer, QuantLinear) else 0
        if self.bits.weight == FLOAT_BITS:
            weight = layer.weight.detach()
            self.register_buffer("weight", weight.T.contiguous() if self.channel_axis else weight)
            on_grid = weight
        else:
            integers, scale = layer.weight_integers(self.bits.weight)
            if scale.shape[1] > 1:
                raise ValueError(
                    f"weights with granularity {layer.rule.granularity!r} cannot be exported yet: their integer "
                    "products take one scale for each output channel; use per_channel or per_tensor"
                )
            self.register_buffer(WEIGHT, integers.T.contiguous() if self.channel_axis else integers)
            self.register_buffer(WEIGHT_SCALE, scale.flatten())
            on_grid = dequantize(integers, scale.view(-1, *[1] * (integers.dim() - 1)))
        self.register_buffer(ACTIVATION_SHIFT, layer.activation_shift if self.in_use else None)
        if self.activation_shift is not None:
            shifted = on_grid @ self.activation_shift
            self.bias = shifted if self.bias is None else self.bias + shifted

    def forward(self, values: Tensor) -> Tensor:
        """As the layer it came from."""
        if self.activation_shift is not None:
            values = values - self.activation_shift
        return self.product(super().forward(values), self._weight(), self.bias)

    def _weight(self) -> Tensor:
        if self.bits.weight == FLOAT_BITS:
            return self.get_buffer("weight")
        integers, scale = self.get_buffer(WEIGHT), self.get_buffer(WEIGHT_SCALE)
        if not torch.onnx.is_in_onnx_export():
            shape = [1] * integers.dim()
            shape[self.channel_axis] = -1
            return dequantize(integers, scale.view(shape))
        return symbolic(
            "::DequantizeLinear", (integers, scale), {"axis": self.channel_axis},
            dtype=torch.float32, shape=integers.shape, version=QUANTIZATION_OPSET,
        )  # fmt: skip


def to_qdq(model: nn.Module, run: BitWidth) -> dict[str, QdqLayer]:
    """Replace everything quantized in a model, in place, by its export form; returns those with a weight by name."""
    layers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantActivation):
            form = QdqLayer(module, run) if isinstance(module, QuantLayer) else QdqActivation(module, run)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, form)
            if isinstance(form, QdqLayer):
                layers[name] = form
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
