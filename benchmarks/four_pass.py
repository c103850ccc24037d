"""SSQL as its reference code computes it: four passes, hooks, plain autograd operations. The yardstick of step.py."""

import torch
from torch import Tensor, nn

import quant
from ssql.methods import SimSiam
from ssql.methods.method import View
from ssql.methods.objectives import symmetric_negative_cosine


class FourPassSSQL(SimSiam):
    """Same loss as SimSiam with SSQL: each view alone, weights quantized for each view, hooks set at each step."""

    def _ssql_step(self, views: list[View], ssql: object) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        bit_width = self._bit_width(ssql)  # type: ignore[arg-type]
        layers = quant.quant_layers(self)
        ranges: dict[str, list[Tensor]] = {name: [] for name in layers}

        def record(name: str):
            return lambda _, args: ranges[name].append(torch.stack(args[0].detach().aminmax()))

        hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
        z = [self.projector(self.encoder.embed(*view)) for view in views]
        p = [self.predictor(projection) for projection in z]
        for hook in hooks:
            hook.remove()
        loss = symmetric_negative_cosine(p, z)

        def quantize_input(name: str, bits: int):
            both = torch.stack(ranges[name])
            return lambda _, args: (fake_quantize_asymmetric(args[0], both[:, 0].min(), both[:, 1].max(), bits),)

        bits = {name: layer.bits_at(bit_width) for name, layer in layers.items()}
        hooks = [
            layer.register_forward_pre_hook(quantize_input(name, bits[name].activation))
            for name, layer in layers.items()
            if bits[name].activation < 32
        ]
        predictions = []
        for view in views:
            weights = {
                f"model.{name}.weight": fake_quantize_symmetric(layer.weight, bits[name].weight)
                for name, layer in layers.items()
            }
            predictions.append(torch.func.functional_call(Through(self), weights, view))
        for hook in hooks:
            hook.remove()
        return (loss + symmetric_negative_cosine(predictions, z)) / 2, z, {}


class Through(nn.Module):
    """One view through encoder, projector and predictor."""

    def __init__(self, model: SimSiam) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Prediction, shape (batch, dim)."""
        prediction: Tensor = self.model.predictor(self.model.projector(self.model.encoder.embed(inputs, lengths)))
        return prediction


def fake_quantize_asymmetric(values: Tensor, minimum: Tensor, maximum: Tensor, bits: int) -> Tensor:
    """Six autograd operations, and a look at the scale that waits for the device."""
    low, high = minimum.clamp_max(0), maximum.clamp_min(0)
    scale = (high - low) / (2**bits - 1)
    if not torch.all(scale > 0):
        return values
    zero_point = (-low / scale).round()
    return ((straight_through(values / scale) + zero_point).clamp(0, 2**bits - 1) - zero_point) * scale


def fake_quantize_symmetric(weight: Tensor, bits: int) -> Tensor:
    """The same, per output channel."""
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / ((2**bits - 1) / 2)
    if not torch.all(scale > 0):
        return weight
    return straight_through(weight / scale).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def straight_through(values: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return values + (values.round() - values).detach()
