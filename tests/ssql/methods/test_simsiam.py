import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from encoders import SpeechTransformer
from ssql.draw import draw_bit_width
from ssql.methods import NonFiniteLossError, SimSiam, SSQLOptions
from ssql.methods.method import frozen_statistics, join
from ssql.objectives import feature_std, symmetric_negative_cosine


class Fixed(nn.Module):
    """Two given views instead of random ones."""

    def __init__(self, views):
        super().__init__()
        self.views, self.next = views, 0

    def forward(self, inputs, lengths, encoder):
        self.next += 1
        return self.views[(self.next - 1) % 2], None


def method(**arguments) -> SimSiam:
    torch.manual_seed(0)
    views = [torch.randn(8, 80, 20) for _ in range(2)]
    model = SimSiam(
        SpeechTransformer(width=16, depth=1, heads=2), Fixed(views), dim=32, **({"views": "apart"} | arguments)
    )
    model.log = model.log_dict = lambda *_, **__: None
    return model


def weight_on_grid(weight, bits):
    steps = weight / (weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) * 2 / (2**bits - 1))
    clamped = (steps + (steps.round() - steps).detach()).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return clamped * (weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) * 2 / (2**bits - 1))


def test_step_equals_a_naive_ssql_written_with_hooks_and_swapped_weights():
    model = method(seed=5)
    loss = model.training_step({"inputs": None, "lengths": None}, 0)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    naive = method(seed=5)
    views, bits = naive.augmentation.views, draw_bit_width(5, 0)
    layers = quant.quant_layers(naive.encoder)
    ranges: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: ranges[name].append(args[0].detach()))
        for name, layer in layers.items()
    ]
    z = [naive.projector(naive.encoder.embed(view)) for view in views]
    p = [naive.predictor(value) for value in z]
    for hook in hooks:
        hook.remove()

    first = next(iter(layers))
    weights = {name: parameter for name, parameter in naive.named_parameters()}

    def quantize_input(_, args, name):
        low = min(0.0, *(values.min().item() for values in ranges[name]))
        high = max(0.0, *(values.max().item() for values in ranges[name]))
        scale = (high - low) / (2**bits.activation - 1)
        zero = round(-low / scale)
        steps = args[0] / scale
        integers = steps + (steps.round() - steps).detach() + zero
        return ((integers.clamp(0, 2**bits.activation - 1) - zero) * scale,)

    for name, layer in layers.items():
        if name != first:
            layer.register_forward_pre_hook(lambda m, args, name=name: quantize_input(m, args, name))
    swapped = {}
    for name in layers:
        key = f"encoder.{name}.weight"
        swapped[key] = weight_on_grid(weights[key], 8 if name == first else bits.weight)
    for name in quant.quant_layers(naive.projector):
        key = f"projector.{name}.weight"
        swapped[key] = weight_on_grid(weights[key], 8)

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.projector, self.predictor = naive.encoder, naive.projector, naive.predictor

        def forward(self, view):
            return self.predictor(self.projector(self.encoder.embed(view)))

    q = [torch.func.functional_call(Branch(), swapped, (view,)) for view in views]
    terms = [
        F.cosine_similarity(prediction, target.detach()).mean()
        for prediction, target in ((p[0], z[1]), (p[1], z[0]), (q[0], z[1]), (q[1], z[0]))
    ]
    naive_loss = -sum(terms) / 4
    naive_loss.backward()
    assert torch.allclose(loss, naive_loss, atol=1e-5)
    for name, parameter in naive.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=2e-4), name


def test_without_ssql_it_is_simsiam():
    model = method(ssql=False)
    loss = model.training_step({"inputs": None, "lengths": None}, 0)
    twin = method(ssql=False)
    z = [twin.projector(twin.encoder.embed(view)) for view in twin.augmentation.views]
    p = [twin.predictor(value) for value in z]
    expected = -(F.cosine_similarity(p[0], z[1].detach()).mean() + F.cosine_similarity(p[1], z[0].detach()).mean()) / 2
    assert torch.allclose(loss, expected)


def test_sequential_differentiation_gives_the_same_loss_and_gradients():
    results = []
    for sequential in (True, False):
        model = method(ssql=SSQLOptions(sequential=sequential))
        loss = model.training_step({"inputs": None, "lengths": None}, 0)
        (loss / 3).backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    (loss, gradients), (other_loss, other_gradients) = results
    assert loss == other_loss
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients, other_gradients, strict=True))


def test_views_together_are_views_apart_but_for_batch_norm():
    views = [(torch.randn(2, 80, 20), torch.tensor([20, 12])), (torch.randn(2, 80, 16), torch.tensor([16, 15]))]
    inputs, lengths = join(views)
    assert inputs.shape == (4, 80, 20)
    assert lengths.tolist() == [20, 12, 16, 15]
    encoder = method().encoder.eval()
    apart = torch.cat([encoder.embed(*view) for view in views])
    assert torch.allclose(encoder.embed(inputs, lengths), apart, atol=1e-5)
    model = method(views="together")
    assert [z.shape for z in model.branch([(view, None) for view in model.augmentation.views])[0]] == [(8, 32)] * 2


@pytest.mark.parametrize("statistics", ["full_precision", "all"])
def test_quantized_pass_leaves_batch_norm_statistics_alone_unless_asked(statistics):
    means = []
    for ssql in (False, SSQLOptions(batch_norm_statistics=statistics)):
        model = method(ssql=ssql)
        model.training_step({"inputs": None, "lengths": None}, 0)
        means.append(model.projector[1].running_mean)
    assert torch.equal(*means) == (statistics == "full_precision")


def test_frozen_statistics_puts_the_momentum_back():
    norm = nn.BatchNorm1d(4)
    with frozen_statistics(norm):
        norm(torch.randn(8, 4) + 3)
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert norm.momentum == 0.1


def test_nan_loss_names_the_step_and_the_losses():
    model = method()
    model.augmentation.views[0][0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 0 .*loss_fp nan"):
        model.training_step({"inputs": None, "lengths": None}, 0)


def test_wrong_bit_ranges_are_errors():
    with pytest.raises(ValueError, match="weight_bits must be two numbers from 2 to 8"):
        SSQLOptions(weight_bits=(1, 8))
    with pytest.raises(ValueError, match="smallest first"):
        SSQLOptions(activation_bits=(8, 4))


def test_loss_and_collapse_indicator():
    z = [torch.randn(64, 32) for _ in range(2)]
    assert torch.allclose(symmetric_negative_cosine(z, z[::-1]), torch.tensor(-1.0))
    assert feature_std(torch.ones(8, 16)) < 1e-3
    assert feature_std(torch.randn(512, 64)) > 0.9
