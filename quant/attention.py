"""The two products of attention, with what goes into them on grids when a policy asks for it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.activation import Mode, QuantIdentity
from quant.bits import FLOAT_BITS
from quant.policy import LayerRule

# A finite "minus infinity": a row without any valid frame gives uniform weights instead of NaN.
MASKED = -1e30


class HeadChannels(nn.Identity):
    """Keys or values, (batch, heads, time, width).

    Args:
        channels: heads times width.
        by_spread: on grids, each channel is divided by its spread. That of a value can be given back after the product.
    """

    def __init__(self, channels: int, by_spread: bool) -> None:
        super().__init__()
        self.channels, self.by_spread = channels, by_spread


class Exponentials(nn.Identity):
    """A tensor of values from 0 to 1, whose rows each have a 1."""


class AttentionProducts(nn.Module):
    """softmax(query key^T / sqrt(width)) value, a module so that `quant.prepare` finds its four tensors.

    Without the policy's `attention`, and in full precision, it is `scaled_dot_product_attention`. On grids:

    - exp(score - largest score of the row) is quantized, not the probability: with 1,500 keys nearly every probability
      is below the first step of an 8-bit grid, while the largest exponential is always 1. Each row is divided by its
      sum after the product.
    - The keys' mean is taken off first, which changes no probability (SageAttention, Zhang et al. 2024, Sec. 4.2).
    - The values' mean is taken off and added to the result: the probabilities sum to 1. What rounds to zero in a row's
      long tail then costs only its distance from the mean.

    Args:
        channels: heads times the width of one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Identity(), HeadChannels(channels, by_spread=False)
        self.exponentials, self.value = Exponentials(), HeadChannels(channels, by_spread=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attended values.

        Args:
            query: shape (batch, heads, time, width).
            key: shape (batch, heads, time, width).
            value: shape (batch, heads, time, width).
            mask: broadcasts to (batch, heads, time, time): bool, True where a frame may be attended to; or float, a
                bias of the scores, `MASKED` where it may not; None where every frame may attend to all.

        Returns:
            shape (batch, heads, time, width).
        """
        if not any(getattr(tensor, "in_use", False) for tensor in self.children()):
            attend = _product_by_product if _is_slow_to_differentiate(query) else F.scaled_dot_product_attention
            return attend(query, key, value, attn_mask=mask)
        scores = self.query(query) @ self.key(key).transpose(-2, -1) / math.sqrt(query.shape[-1])
        scores = _masked(scores, mask)
        exponentials = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
        # The sum of what was not rounded: dividing by that of the rounded ones would give the peaks the tail's share.
        total = exponentials.sum(dim=-1, keepdim=True)
        attended: Tensor = self.exponentials(exponentials) @ self.value(value) / total
        assert isinstance(self.value, QuantHeadChannels)
        means = self.value.means(value)
        return attended if means is None else attended + means


def _is_slow_to_differentiate(query: Tensor) -> bool:
    """In bfloat16 on a CPU torch's fused attention takes 1.9 times as long, back and forth, as its products do."""
    return query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16


def _product_by_product(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
    # A float mask makes the scores float32.
    return _masked(scores, attn_mask).to(value.dtype).softmax(dim=-1) @ value


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, MASKED) if mask.dtype == torch.bool else scores + mask


class QuantHeadChannels(QuantIdentity):
    """Keys or values of attention: each channel's mean is taken off, and values are divided by each channel's spread.

    The spread is a channel's largest deviation from its mean: one range for the tensor is then one for each channel.
    Means and spreads are found with the range, and given back after the product: see `AttentionProducts`.
    """

    activation_shift: Tensor
    channels: int
    by_spread: bool

    def attach(self, rule: LayerRule, mode: Mode, device: torch.device) -> None:
        """Add rule, mode, range buffers, means of zero and spreads of one."""
        super().attach(rule, mode, device)
        self.activation_shift = torch.zeros(self.channels, device=device)
        if self.by_spread:
            self.activation_spread = torch.ones(self.channels, device=device)

    def forward(self, input: Tensor) -> Tensor:
        """Shape (batch, heads, time, width): deviations from the means on their grid; the input in a float run."""
        self.observe(input)
        bits = self.bits_at(self.mode.run.bit_width).activation
        if bits == FLOAT_BITS:
            return input
        return self._spread_out(self.on_grid(self.normalized(input), bits))

    def means(self, input: Tensor) -> Tensor | None:
        """What `forward` takes off, shape (heads, 1, width); None in a float run."""
        bits = self.bits_at(self.mode.run.bit_width).activation
        return None if bits == FLOAT_BITS else by_head(self.activation_shift, input)

    def normalized(self, values: Tensor) -> Tensor:
        """Shape (batch, heads, time, width)."""
        values = values - by_head(self.activation_shift, values)
        return values if self.activation_spread is None else values / by_head(self.activation_spread, values)

    def denormalized(self, values: Tensor) -> Tensor:
        """The way back."""
        return self._spread_out(values) + by_head(self.activation_shift, values)

    def _spread_out(self, values: Tensor) -> Tensor:
        return values if self.activation_spread is None else values * by_head(self.activation_spread, values)

    def _record(self, values: Tensor, valid: Tensor | None) -> None:
        super()._record(values.transpose(1, 2).flatten(2), None if valid is None else valid.squeeze(1))


class QuantExponentials(QuantIdentity):
    """Values from 0 to 1 on the grid that has both ends: nothing is to be observed."""

    has_static_range = False

    def activation_qparams(self, bits: int) -> tuple[Tensor, Tensor]:
        """Scale 1 / (2^bits - 1), and zero point 0, both of shape ()."""
        one = self.activation_min.new_ones(())
        return one / (2**bits - 1), torch.zeros_like(one, dtype=torch.int32)


def by_head(channels: Tensor, values: Tensor) -> Tensor:
    """A number for each channel, shape (channels,), in a form that broadcasts to values (batch, heads, time, width)."""
    return channels.view(values.shape[1], 1, -1)


QUANTIZED_TENSOR: dict[type[nn.Module], type[QuantIdentity]] = {
    nn.Identity: QuantIdentity,
    HeadChannels: QuantHeadChannels,
    Exponentials: QuantExponentials,
}
