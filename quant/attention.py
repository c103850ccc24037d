"""The two products of attention, with query, key, probabilities and value on their grids when a policy asks for it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A finite "minus infinity": a row without any valid frame gives uniform weights instead of NaN.
MASKED = -1e30


class AttentionProducts(nn.Module):
    """softmax(query key^T / sqrt(width)) value, a module so that `quant.prepare` finds its four tensors.

    Without the policy's `attention`, and in full precision, it is `scaled_dot_product_attention`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.probabilities, self.value = (nn.Identity() for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attended values.

        Args:
            query: shape (batch, heads, time, width).
            key: shape (batch, heads, time, width).
            value: shape (batch, heads, time, width).
            mask: broadcasts to (batch, heads, time, time): bool, True where a frame may be attended to; or float, a
                bias of the scores, `MASKED` where it may not.

        Returns:
            shape (batch, heads, time, width).
        """
        if not any(getattr(tensor, "in_use", False) for tensor in self.children()):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        scores = self.query(query) @ self.key(key).transpose(-2, -1) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~mask, MASKED) if mask.dtype == torch.bool else scores + mask
        probabilities = scores.softmax(dim=-1)
        attended: Tensor = self.probabilities(probabilities) @ self.value(value)
        return attended
