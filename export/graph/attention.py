"""Attention as ONNX Runtime runs it fastest, in float and on integers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset21 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from export.metadata import OPSET
from quant import AttentionProducts
from quant.attention import MASKED


class IntegerAttention(nn.Module):
    """Attention products whose four tensors are export forms.

    The mask is added, not selected by: a third of the time, the same numbers.

    Args:
        products: with `query` and `exponentials` replaced by `export.graph.qdq.QdqActivation`, `key` and `value` by
            `QdqHeadChannels`.
    """

    def __init__(self, products: AttentionProducts) -> None:
        super().__init__()
        self.query, self.exponentials = products.query, products.exponentials
        self.key: Any = products.key
        self.value: Any = products.value

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As `quant.AttentionProducts`."""
        key = self.key.normalized(key).transpose(-2, -1)
        scores = _product(self.query, query, self.key, key, 1 / math.sqrt(query.shape[-1]))
        if mask is not None:
            scores = scores + (torch.where(mask, 0.0, MASKED) if mask.dtype == torch.bool else mask)
        exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        total = exponentials.sum(dim=-1, keepdim=True)
        attended = _product(self.exponentials, exponentials, self.value, self.value.normalized(value))
        restored: Tensor = self.value.restored(attended / total)
        return restored


def _product(left_form: Any, left: Tensor, right_form: Any, right: Tensor, factor: float = 1) -> Tensor:
    """left right factor, of two activations, which ONNX Runtime fuses to MatMulIntegerToFloat.

    Where DequantizeLinear feeds a MatMul, the runtime would make the right side unsigned before it fuses.
    """
    if not (left_form.in_use and right_form.in_use):
        return left_form(left) @ right_form(right) * factor
    integers = left_form.quantize(left), right_form.quantize(right)
    zero_points = left_form.activation_zero_point, right_form.activation_zero_point
    shape = (*left.shape[:-1], right.shape[-1])
    product = symbolic("::MatMulInteger", (*integers, *zero_points), dtype=torch.int32, shape=shape, version=10)
    # The fusion wants a Mul of both scales.
    return product.float() * (unfolded(left_form.activation_scale) * (right_form.activation_scale * factor))


def unfolded(scale: Tensor) -> Tensor:
    """A scale, shape (), that ONNX Runtime does not see through before it fuses: it folds no DequantizeLinear."""
    return dequantized((torch.ones((), dtype=torch.uint8), scale), ())


def dequantized(inputs: tuple[Tensor, ...], shape: Sequence[int], attributes: dict[str, Any] | None = None) -> Tensor:
    """DequantizeLinear of integers, scale and, if there is one, zero point."""
    return symbolic("::DequantizeLinear", inputs, attributes, dtype=torch.float32, shape=shape, version=OPSET)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(query key^T scale + mask) value, shape (batch, heads, time, width of a head), in float.

    The exporter's own form spends a sixth of an int8 run on guarding NaN.

    Equal to torch's wherever a row may attend to at least one frame; rows that may attend to none belong to
    padding, which encoders zero.
    """
    width = query.shape[-1]
    if is_causal or enable_gqa or (scale is None and not isinstance(width, int)):
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = 1 / math.sqrt(width) if scale is None else scale
    # On the smaller tensor; ONNX Runtime takes Transpose and Mul into its FusedMatMul.
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=scale)), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        if attn_mask.dtype.name == "BOOL":
            attn_mask = op.Where(attn_mask, op.Constant(value_float=0.0), op.Constant(value_float=MASKED))  # type: ignore[type-var]
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}
