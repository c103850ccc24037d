import copy

import pytest
import torch
from torch import nn

import quant
from encoders import SpeechTransformer, VisionEncoder, load_encoder, save_encoder
from ssql.finetuning.adapters import Adapters, add_adapters, merge_adapters


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SpeechTransformer(width=64, depth=1, heads=2)


@pytest.fixture
def mel():
    return torch.randn(2, 80, 40, generator=torch.Generator().manual_seed(1))


def trained(encoder, mel, steps=5):
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (encoder.embed(mel)[0] - 1).square().mean().backward()
        optimizer.step()
    return encoder


@pytest.mark.parametrize(("base", "error"), [("nf4", 0.1), ("int8", 0.01)])
def test_adapters_start_as_the_quantized_base(encoder, mel, base, error):
    with torch.no_grad():
        before = encoder(mel)[0]
        add_adapters(encoder, Adapters(base))
        after = encoder(mel)[0]
    distance = (after - before).norm() / before.norm()
    assert 0 < distance < error


def test_nf4_weights_are_those_of_the_published_table(encoder):
    weight = encoder.blocks[0].attn.query.weight.detach().clone()
    add_adapters(encoder, Adapters("nf4"))
    merge_adapters(encoder)
    # Quantiles of a normal distribution (QLoRA, appendix E), scaled by each block's largest magnitude.
    table = torch.tensor(
        [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
        + [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    )
    blocks = weight.view(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = table[(blocks / largest).unsqueeze(-1).sub(table).abs().argmin(dim=-1)] * largest
    assert torch.allclose(encoder.blocks[0].attn.query.weight, nearest.view_as(weight), atol=1e-6)


# Products with an int8 base round their inputs to 8 bits as well; the merged layer does not.
@pytest.mark.parametrize(("base", "error"), [("nf4", 1e-6), ("int8", 0.01)])
def test_only_adapters_learn_and_they_merge_into_what_they_were(encoder, mel, base, error):
    add_adapters(encoder, Adapters(base, rank=4))
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_" in name for name in learning)
    start = encoder.embed(mel).detach()
    trained(encoder, mel).eval()
    with torch.no_grad():
        adapted = encoder(mel)[0]
        assert not torch.allclose(encoder.embed(mel), start, atol=1e-3)
        merge_adapters(encoder)
        assert (encoder(mel)[0] - adapted).norm() < error * adapted.norm()
    assert type(encoder.blocks[0].attn.query) is nn.Linear
    assert {type(module).__module__.split(".")[0] for module in encoder.modules()} <= {"torch", "encoders", "quant"}


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_merged_weights_are_base_plus_product(encoder, mel, base):
    untrained = copy.deepcopy(encoder)
    for model in (untrained, encoder):
        add_adapters(model, Adapters(base, rank=4, alpha=2.0))
    layer = trained(encoder, mel).blocks[0].mlp[2]
    product = 0.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    for model in (untrained, encoder):
        merge_adapters(model)
    assert product.abs().max() > 1e-4
    expected = untrained.blocks[0].mlp[2].weight + product
    assert torch.allclose(encoder.blocks[0].mlp[2].weight, expected, atol=1e-7)


def test_a_merged_encoder_prepares_saves_and_comes_back(encoder, mel, tmp_path):
    names = dict(encoder.named_parameters()).keys()
    add_adapters(encoder, Adapters())
    merge_adapters(trained(encoder, mel))
    assert dict(encoder.named_parameters()).keys() == names
    quant.prepare(encoder)
    quant.calibrate(encoder, [mel])
    save_encoder(encoder.eval(), tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    with torch.no_grad(), quant.at(encoder, "w4a8"), quant.at(again, "w4a8"):
        assert torch.equal(encoder(mel)[0], again(mel)[0])


def test_what_cannot_have_adapters():
    with pytest.raises(ValueError, match="VisionEncoder has no linear layer for adapters"):
        add_adapters(VisionEncoder("resnet10t"), Adapters())
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        Adapters(rank=0)
