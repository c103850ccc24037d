"""Self-attention with a mask of keys and products that can be quantized, from the layers of torch and torchaudio."""

import torch
from torch import Tensor, nn
from torchaudio.models.wav2vec2.components import SelfAttention

from quant import AttentionProducts


class MaskedAttention(nn.Module):
    """torchaudio's self-attention, its layers and names, with a mask of keys and quantizable products."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        self.q_proj, self.out_proj = attention.q_proj, attention.out_proj
        self.products = AttentionProducts(attention.embed_dim)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor,
        position_bias: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x: (batch, time, width); attention_mask: bool (batch, 1, 1, time), True where a frame may be attended to.

        The other arguments are those of torchaudio's blocks; `position_bias` is returned beside the result.
        """
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, width / heads)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask, position_bias = self._mask(x, attention_mask, position_bias)
        attended = self.products(query, key, value, mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), position_bias

    def _mask(self, x: Tensor, mask: Tensor, position_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return mask, position_bias


@torch.no_grad()
def separated(fused: nn.MultiheadAttention) -> SelfAttention:
    """The same attention with query, key and value as layers of their own: each gets scales of its own."""
    attention = SelfAttention(fused.embed_dim, fused.num_heads)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    for layer, weight, bias in zip(layers, fused.in_proj_weight.chunk(3), fused.in_proj_bias.chunk(3), strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    attention.out_proj.load_state_dict(fused.out_proj.state_dict())
    return attention
