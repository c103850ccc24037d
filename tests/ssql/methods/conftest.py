"""Methods on fixed views, and an independent, deliberately naive SSQL: hooks, swapped weights, one pass a view."""

import pytest
import torch
from torch import nn

import quant
from encoders import SpeechTransformer
from ssql.methods import MaskedPrediction


class Fixed(nn.Module):
    """Two given views in turns instead of random ones."""

    def __init__(self, views, lengths):
        super().__init__()
        self.views, self.lengths, self.next = views, lengths, 0

    def forward(self, inputs, lengths, encoder):
        self.next += 1
        return self.views[(self.next - 1) % 2], self.lengths


class Naive:
    """Projections of a prepared method's encoder and projector, in full precision and then at a bit-width."""

    def __init__(self, model, bits, frames=False):
        self.encoder, self.projector, self.bits, self.frames = model.encoder, model.projector, bits, frames
        self.layers = quant.quant_layers(model.encoder)
        self.first = next(iter(self.layers))
        self.ranges = {name: [0.0, 0.0] for name in self.layers}

    def full(self, views):
        def widen(name, values):
            low, high = self.ranges[name]
            self.ranges[name] = [min(low, values.min().item()), max(high, values.max().item())]

        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: widen(name, args[0].detach()))
            for name, layer in self.layers.items()
        ]
        whole = Projected(self.encoder, self.projector, self.frames)
        projections = [whole(view) for view in views]
        for hook in hooks:
            hook.remove()
        return projections

    def quantized(self, views):
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: self.input_on_grid(args[0], name))
            for name, layer in self.layers.items()
            if name != self.first
        ]
        weights = {
            f"encoder.{name}.weight": weight_on_grid(layer.weight, 8 if name == self.first else self.bits.weight)
            for name, layer in self.layers.items()
        }
        weights |= {
            f"projector.{name}.weight": weight_on_grid(layer.weight, 8)
            for name, layer in self.projector.named_modules()
            if isinstance(layer, quant.QuantLayer)
        }
        whole = Projected(self.encoder, self.projector, self.frames)
        projections = [torch.func.functional_call(whole, weights, (view,)) for view in views]
        for hook in hooks:
            hook.remove()
        return projections

    def input_on_grid(self, values, name):
        low, high = self.ranges[name]
        scale = (high - low) / (2**self.bits.activation - 1)
        zero = round(-low / scale)
        steps = values / scale
        integers = steps + (steps.round() - steps).detach() + zero
        return ((clamped(integers, 0, 2**self.bits.activation - 1) - zero) * scale,)


class Projected(nn.Module):
    def __init__(self, encoder, projector, frames):
        super().__init__()
        self.encoder, self.projector, self.frames = encoder, projector, frames

    def forward(self, view):
        return self.projector(self.encoder(view)[0] if self.frames else self.encoder.embed(view))


def weight_on_grid(weight, bits):
    scale = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) * 2 / (2**bits - 1)
    steps = weight / scale
    return clamped(steps + (steps.round() - steps).detach(), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


@pytest.fixture
def naive():
    return Naive


@pytest.fixture
def build():
    """Makes a method on a small speech transformer and two fixed views of 8 clips; views apart unless told."""

    def build(method, lengths=None, **arguments):
        torch.manual_seed(0)
        views = [torch.randn(8, 80, 20) for _ in range(2)]
        sizes = {} if method is MaskedPrediction else {"dim": 32}
        model = method(
            SpeechTransformer(width=16, depth=2, heads=2),
            Fixed(views, lengths),
            **({"views": "apart"} | sizes | arguments),
        )
        model.log = model.log_dict = lambda *_, **__: None
        return model

    return build


@pytest.fixture
def step():
    """Loss and gradients by name of one training step on the fixed views."""

    def step(model):
        loss = model.training_step({"inputs": None, "lengths": None}, 0)
        loss.backward()
        return loss.detach(), gradients(model)

    return step


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def assert_same_gradients():
    def check(found, model, atol=2e-4):
        expected = gradients(model)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, atol=atol), name

    return check


def clamped(integers, low, high):
    """The ends of the grid belong to it: torch's own clamp gives them no gradient."""
    return torch.where((integers >= low) & (integers <= high), integers, integers.detach().clamp(low, high))
