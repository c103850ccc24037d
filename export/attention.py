"""Attention as plain ONNX operators: the exporter's own form spends a sixth of an int8 run on guarding NaN."""

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset21 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

from quant.attention import MASKED


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
    """softmax(query key^T scale + mask) value, shape (batch, heads, time, width of a head).

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
