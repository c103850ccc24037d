import pytest
import torch

import quant
from encoders import HuBERT, Wav2Vec2, WavLM

SMALL = {"width": 64, "depth": 2, "heads": 4, "extractor_width": 32, "position_kernel": 16, "position_groups": 4}
BASE = {"extractor_norm": "group", "extractor_bias": False, "norm_first": False}
# Receptive field and stride of the published convolutions: 25 ms every 20 ms.
CONVOLUTIONS = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize("form", [{}, BASE])
@pytest.mark.parametrize("family", [Wav2Vec2, HuBERT, WavLM])
def test_a_clip_alone_has_torchaudios_features(family, form, monkeypatch):
    built = []

    def build_twice(self, **arguments):
        for _ in range(2):
            torch.manual_seed(0)
            built.append(original(self, **arguments))
        with torch.no_grad():
            for model in built:
                generator = torch.Generator().manual_seed(1)
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return built[0]

    original = family._build
    monkeypatch.setattr(family, "_build", build_twice)
    encoder = family(**SMALL, **form).eval()
    waveform = torch.randn(2, 8000)
    with torch.no_grad():
        reference, _ = built[1].eval()(waveform)
        features, lengths = encoder(waveform)
    assert features.shape == reference.shape == (2, 24, 64)
    assert torch.allclose(features, reference, atol=1e-5)
    assert lengths.tolist() == [24, 24]


def test_it_is_the_same_where_no_gradient_is_wanted():
    with torch.no_grad():
        encoder = Wav2Vec2(**SMALL)
    assert isinstance(encoder.transformer.pos_conv_embed.conv.weight, torch.nn.Parameter)
    quant.prepare(encoder, quant.Policy())


def test_lengths_follow_the_convolutions():
    encoder = Wav2Vec2(**SMALL).eval()
    for samples in (400, 719, 720, 16_000, 16_079):
        expected = samples
        for kernel, stride in CONVOLUTIONS:
            expected = (expected - kernel) // stride + 1
        features, lengths = encoder(torch.randn(1, samples))
        assert features.shape[1] == lengths[0] == expected == (samples - 80) // 320


def test_waveforms_are_normalized_over_their_own_samples():
    front_end = Wav2Vec2(**SMALL).front_end
    waveform = torch.randn(2, 1000) * 3 + 2
    normalized, _ = front_end(waveform, torch.tensor([1000, 600]))
    assert torch.allclose(normalized[1, :600], torch.nn.functional.layer_norm(waveform[1, :600], (600,)), atol=1e-4)
    assert not normalized[1, 600:].any()
    plain, _ = Wav2Vec2(**SMALL, normalize_epsilon=None).front_end(waveform, torch.tensor([1000, 600]))
    assert torch.equal(plain[1, :600], waveform[1, :600])
    assert not plain[1, 600:].any()


def test_positions_and_products_can_be_quantized():
    encoder = quant.prepare(WavLM(**SMALL), quant.Policy(attention=True))
    names = quant.quant_activations(encoder)
    assert "transformer.pos_conv_embed.conv" in names
    assert "transformer.layers.1.attention.products.exponentials" in names
    assert {f"transformer.layers.0.attention.{p}_proj" for p in "qkv"} <= names.keys()
    waveform = torch.randn(2, 4000)
    quant.calibrate(encoder, [waveform])
    with torch.no_grad():
        full, _ = encoder(waveform)
        with quant.at(encoder, "w8a8"):
            quantized, _ = encoder(waveform)
    assert torch.nn.functional.cosine_similarity(full.flatten(), quantized.flatten(), dim=0) > 0.99


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="extractor_norm 'batch': write one of layer, group"):
        Wav2Vec2(**SMALL, extractor_norm="batch")
    with pytest.raises(ValueError, match="divisible by heads 5"):
        Wav2Vec2(width=64, heads=5)
    with pytest.raises(ValueError, match=r"clip of 399 samples is shorter than one frame \(400 samples, 25 ms"):
        Wav2Vec2(**SMALL)(torch.zeros(1, 399))
