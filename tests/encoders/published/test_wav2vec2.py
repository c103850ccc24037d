"""Encoders of wav2vec 2.0, HuBERT and WavLM give transformers' features, and go to int8."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from written import to_file

import export
import quant
from encoders import ArtifactError, import_encoder, load_encoder, save_encoder

sys.path.insert(0, str(Path(__file__).parents[1]))
import wav2vec2_reference as reference


def waveform(samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, generator=generator) * torch.linspace(1e-3, 0.1, samples) + 0.01


def imported(folder: Path, model_type="wav2vec2", shape="base", **options):
    """Encoder, report, and what the reference needs."""
    config = reference.configuration(model_type, shape)
    weights = reference.random_weights(config)
    encoder, report = import_encoder(reference.write(folder, weights, config, **options))
    return encoder, report, weights, config


def error_of(features: torch.Tensor, expected: torch.Tensor) -> float:
    return float((features - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("model_type", "shape", "options"),
    [
        ("wav2vec2", "base", {"weight_norm": "old", "head": True}),
        ("wav2vec2", "large", {"weight_norm": "new"}),
        ("hubert", "base", {"weight_norm": "new"}),
        ("hubert", "large", {"weight_norm": "old", "head": True}),
        ("wavlm", "base", {"weight_norm": "old", "normalize": False}),
        ("wavlm", "large", {"weight_norm": "new", "head": True}),
    ],
)
def test_features_are_those_of_the_reference(tmp_path, model_type, shape, options):
    encoder, report, weights, config = imported(tmp_path / "published", model_type, shape, **options)
    assert encoder.name == report.layout == model_type
    head = {"lm_head": 1, "quantizer": 1, "project_q": 1, "project_hid": 1, "layer_weights": 1}
    assert report.left_out == (head if options.get("head") else {}) | {"masked_spec_embed": 1}
    assert report.keys == len(weights) - 1
    # WavLM's distances have buckets of their own up to 80 frames, and shared ones beyond.
    clips = [waveform(40_000), waveform(12_345)]
    with torch.no_grad():
        batch, lengths = encoder(
            *encoder.front_end(pad_sequence(clips, batch_first=True), torch.tensor([40_000, 12_345]))
        )
        for n, clip in enumerate(clips):
            taken = reference.normalized(clip) if options.get("normalize", True) else clip
            expected = reference.encode(weights, config, taken)
            alone, frames = encoder(*encoder.front_end(clip.unsqueeze(0)))
            assert lengths[n] == frames[0] == len(expected)
            assert error_of(alone[0], expected) < 1e-5
            assert error_of(batch[n, : lengths[n]], expected) < 1e-5
            assert not batch[n, lengths[n] :].any()


def test_it_is_calibrated_saved_and_exported_to_int8(tmp_path):
    """WavLM's base form has all that the others have: group norm, norms after, and the gated bias."""
    encoder, *_ = imported(tmp_path / "published", "wavlm", "base")
    clips = [waveform(samples) for samples in (16_000, 12_345)]
    inputs = encoder.front_end(pad_sequence(clips, batch_first=True), torch.tensor([16_000, 12_345]))
    quant.prepare(encoder)
    quant.calibrate(encoder, [inputs], lambda batch: encoder(*batch))
    save_encoder(encoder, tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.front_end.epsilon == 1e-7
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8", input="waveform", check=False)
    result = export.verify(path, encoder, "w8a8", clips=clips)
    assert result.passed, result
    operators = export.integer_operators(path)
    assert operators.get("MatMulIntegerToFloat", 0) + operators.get("QLinearConv", 0) >= 18


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_stable_layer_norm": None}, r"config\.json must be the model's own, with do_stable_layer_norm \(true"),
        ({"do_stable_layer_norm": 1}, "with do_stable_layer_norm"),
        ({"num_attention_heads": None}, "with num_attention_heads: the weights do not tell it"),
        ({"num_attention_heads": 5}, "width 64 does not fit 5 heads"),
        ({"feat_extract_norm": "layer"}, "says extractor_norm 'layer', the weights have 'group'"),
        ({"conv_bias": True}, "says extractor_bias True, the weights have False"),
        ({"conv_dim": [32, 64]}, r"says extractor_width \[32, 64\], the weights have 32"),
        ({"conv_stride": [5, 2]}, r"says conv_stride \[5, 2\]: this toolkit's encoder has \[5, 2, 2"),
        ({"add_adapter": True}, "says add_adapter True: this toolkit's encoder has False"),
        ({"adapter_attn_dim": 16}, "says adapter_attn_dim 16: this toolkit's encoder has None"),
        ({"conv_pos_batch_norm": True}, "says conv_pos_batch_norm True"),
        ({"feat_proj_layer_norm": False}, "says feat_proj_layer_norm False"),
        ({"hidden_act": "relu"}, "says hidden_act 'relu'"),
    ],
)
def test_configurations_that_do_not_fit_are_sentences(tmp_path, change, message):
    config = reference.configuration("wav2vec2", "base")
    folder = reference.write(tmp_path / "published", reference.random_weights(config), config)
    changed = {key: value for key, value in (config | change).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder)


POSITIONS = "encoder.pos_conv_embed.conv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{POSITIONS}.weight_g": None}, r"must have .*weight_g and .*weight_v \(as they are named here\)"),
        ({f"{POSITIONS}.weight": torch.ones(64, 16, 16)}, "or the weight alone"),
        ({f"{POSITIONS}.weight_g": torch.ones(64, 1, 1)}, r"weight_g .* has shape \(64, 1, 1\), which does not fit"),
        ({f"{POSITIONS}.weight_v": torch.zeros(64, 16, 16)}, "weight_v .* is zero at a place of its kernel"),
        ({"encoder.layers.1.layer_norm.bias": None}, r"missing transformer\.layers\.1\.layer_norm\.bias"),
        ({"encoder.layers.1.adapter_layer.norm.bias": torch.ones(2)}, r"extra .*adapter_layer\.norm\.bias"),
        ({"encoder.layers.1.feed_forward.intermediate_dense.bias": torch.ones(2)}, r"has shape \(2,\), not \(256,\)"),
        ({"adapter.layers.0.conv.bias": torch.ones(2)}, r"does not know: adapter\.layers\.0\.conv\.bias"),
        ({"feature_projection.projection.weight": None}, "missing feature_projection.projection.weight"),
    ],
)
def test_every_key_is_accounted_for(tmp_path, change, message):
    config = reference.configuration("wav2vec2", "base")
    folder = reference.write(tmp_path / "published", reference.random_weights(config), config)
    state = load_file(folder / "model.safetensors") | change
    save_file({key: value for key, value in state.items() if value is not None}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder)


def test_a_folded_weight_of_positions(tmp_path):
    encoder, _, weights, config = imported(tmp_path / "published")
    weights[f"{POSITIONS}.weight"] = encoder.transformer.pos_conv_embed.conv.weight.detach()
    state = {key: value for key, value in weights.items() if not key.endswith(("weight_g", "weight_v"))}
    save_file(state, tmp_path / "published" / "model.safetensors")
    again, _ = import_encoder(tmp_path / "published", "hubert")  # without a head, the same layout
    clip = waveform(8_000).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again.embed_raw(clip), encoder.embed_raw(clip))


def test_what_says_whether_clips_are_normalized(tmp_path):
    config = reference.configuration("wavlm", "base")
    folder = reference.write(tmp_path / "published", reference.random_weights(config), config)
    old, new = folder / "preprocessor_config.json", folder / "processor_config.json"
    for text, message in (
        ('{"do_normalize": "yes"}', r"preprocessor_config\.json says do_normalize 'yes': write true or false"),
        ('{"do_normalize": true, "sampling_rate": 8000}', "says sampling_rate 8000: it must be 16000"),
        ("[]", r"preprocessor_config\.json is not a model's configuration"),
        ("{}", r"preprocessor_config\.json is missing, or lacks do_normalize"),
    ):
        old.write_text(text)
        with pytest.raises(ArtifactError, match=message):
            import_encoder(folder)
    old.unlink()
    with pytest.raises(ArtifactError, match=r"put the file of the model there \(or write"):
        import_encoder(folder)
    new.write_text('{"feature_extractor": {"do_normalize": false}}')  # as transformers 5 writes it
    assert import_encoder(folder)[0].arguments["normalize_epsilon"] is None
