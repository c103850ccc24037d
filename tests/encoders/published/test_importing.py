import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders import ArtifactError, import_encoder, load_encoder, save_encoder

sys.path.insert(0, str(Path(__file__).parents[1]))
import published_reference as published

LAYOUTS = ("step_audio_2", "whisper", "openai_whisper", "qwen2_audio")


@pytest.fixture
def weights():
    return published.random_weights(adaptor=False)


def waveform(samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, generator=generator) * torch.linspace(1e-4, 0.5, samples)


# Odd and even numbers of frames at each of the three strides.
@pytest.mark.parametrize("samples", [160 * n for n in range(88, 96)] + [14_001])
def test_step_audio_2_gives_its_published_features(tmp_path, samples):
    weights = published.random_weights(adaptor=True)
    encoder, report = import_encoder(published.write(tmp_path / "published", "step_audio_2", weights), "step_audio_2")
    clip = waveform(samples)
    mel = published.log_mel(clip, 80)
    allowed = published.step_audio_mask(mel.shape[1], mel.shape[1] - 2)
    reference = published.adapt(weights, published.encode(weights, mel, allowed, pooling=True))
    tokens = (((mel.shape[1] - 2) + 1) // 2 // 2 - 1) // 2 + 1
    with torch.no_grad():
        features, lengths = encoder(*encoder.front_end(clip.unsqueeze(0)))
    assert lengths.tolist() == [tokens]
    assert torch.allclose(features[0, :tokens], reference[:tokens], atol=2e-5)
    assert report.keys == len(weights)
    assert report.left_out == {"model.layers": 1, "lm_head": 1}


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_whisper_and_qwen2_audio_give_their_published_features(tmp_path, weights, layout):
    """On clips as long as the encoder's positions, as Whisper pads them."""
    encoder, _ = import_encoder(published.write(tmp_path / "published", layout, weights), layout)
    pooling = layout == "qwen2_audio"
    mel = torch.randn(80, 2 * published.SIZES["positions"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, lengths = encoder(mel.unsqueeze(0), torch.tensor([mel.shape[1]]))
    reference = published.encode(weights, mel, torch.ones(mel.shape[1] // 2, dtype=torch.bool), pooling)
    assert lengths.tolist() == [len(reference)]
    assert torch.allclose(features[0], reference, atol=2e-5)


def test_distil_whisper_and_large_v3(tmp_path, monkeypatch):
    """128 mels, and a decoder of two blocks, whose keys are left out and whose sizes are no concern of the encoder."""
    monkeypatch.setitem(published.SIZES, "n_mels", 128)
    folder = published.write(tmp_path / "published", "whisper", published.random_weights(adaptor=False))
    config = published.published_config("whisper") | {"decoder_layers": 2, "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    encoder, report = import_encoder(folder)
    assert encoder.arguments["n_mels"] == 128 and encoder.arguments["depth"] == 4
    assert report.left_out == {"model.decoder": 1, "proj_out": 1}
    log_mel, _ = encoder.front_end(waveform(16_000).unsqueeze(0))
    assert log_mel.shape == (1, 128, 120)  # filled to all positions


def test_a_shorter_clip_of_qwen2_audio_attends_to_itself(tmp_path, weights):
    """Qwen2-Audio pads log-mels to 30 s with silence and masks attention: the same features without the padding."""
    encoder, _ = import_encoder(published.write(tmp_path / "published", "qwen2_audio", weights), "qwen2_audio")
    log_mel, frames = encoder.front_end(waveform(160 * 51).unsqueeze(0))
    padded = torch.nn.functional.pad(log_mel[0], (0, 67), value=float(log_mel.min()))
    allowed = torch.arange(60) < (frames - 1) // 2 + 1
    reference = published.encode(weights, padded, allowed, pooling=True)
    with torch.no_grad():
        features, lengths = encoder(log_mel, frames)
    assert lengths.tolist() == [13]
    assert torch.allclose(features[0, :13], reference[:13], atol=2e-5)


@pytest.mark.parametrize("layout", ["whisper", "openai_whisper"])
def test_a_shorter_clip_of_whisper_is_filled_with_silence(tmp_path, weights, layout):
    """Whisper itself pads every clip to its window, and attends to all of it; `fill` false is for cheaper clips."""
    folder = published.write(tmp_path / "published", layout, weights)
    encoder, _ = import_encoder(folder, layout)
    clip = waveform(8_000)
    padded = torch.nn.functional.pad(clip, (0, 320 * published.SIZES["positions"] - len(clip)))
    reference = published.encode(weights, published.log_mel(padded, 80)[:, :-2], torch.ones(60, dtype=bool), False)
    with torch.no_grad():
        features, lengths = encoder(*encoder.front_end(clip.unsqueeze(0)))
    assert lengths.tolist() == [60]
    assert torch.allclose(features[0], reference, atol=2e-5)
    save_encoder(encoder, tmp_path / "encoder")
    assert load_encoder(tmp_path / "encoder").arguments["log_mel"] == "whisper_filled"
    assert import_encoder(folder, layout, fill=False)[0].arguments["log_mel"] == "whisper"
    save_encoder(import_encoder(folder, layout, margin=0.1)[0], tmp_path / "margin")
    with torch.no_grad():
        loaded = load_encoder(tmp_path / "margin")
        assert loaded(*loaded.front_end(clip.unsqueeze(0)))[1].tolist() == [30]
    with pytest.raises(ValueError, match=f"layout {layout} fills no clips here: leave margin out"):
        import_encoder(folder, layout, fill=False, margin=0.1)


def test_shards_half_precision_and_a_bare_file(tmp_path, weights):
    half = {key: value.bfloat16() for key, value in weights.items()}
    folder = published.write(tmp_path / "shards", "whisper", half, shards=3, config=False)
    encoder, report = import_encoder(folder, "whisper", heads=4)
    assert report.heads_from == "as given"
    assert encoder.arguments | {"heads": 4, "depth": 4, "positions": 60} == encoder.arguments
    assert torch.equal(encoder.blocks[3].mlp[2].weight, weights["blocks.3.mlp.2.weight"].bfloat16().float())
    bare = tmp_path / "bare" / "encoder.safetensors"
    bare.parent.mkdir()
    save_file({key.removeprefix("model."): value for key, value in load_file(_whole(folder, tmp_path)).items()}, bare)
    again, report = import_encoder(bare, "whisper")
    assert again.arguments["heads"] == 2
    assert report.heads_from == "width / 64, without a config.json"


def _whole(folder, tmp_path):
    state = {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    save_file(state, tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


def test_an_imported_encoder_is_saved_and_comes_back(tmp_path, weights):
    encoder, _ = import_encoder(published.write(tmp_path / "published", "qwen2_audio", weights), "qwen2_audio")
    save_encoder(encoder, tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    clip = waveform(8_000).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again.embed_raw(clip), encoder.embed_raw(clip))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.blocks.2.attn.key.weight": None}, r"missing blocks\.2\.attn\.key\.weight"),
        ({"encoder.blocks.2.attn.key.bias": torch.zeros(128)}, r"extra blocks\.2\.attn\.key\.bias"),
        ({"vision.conv.weight": torch.zeros(2)}, r"layout 'step_audio_2' does not know: vision\.conv\.weight"),
        ({"encoder.after_norm.bias": torch.zeros(64)}, r"after_norm\.bias has shape \(64,\), not \(128,\)"),
        ({"encoder.conv1.weight": None}, r"no encoder in this layout: missing conv1\.weight"),
        ({"encoder.conv2.bias": torch.full((128,), torch.nan)}, r"encoder\.conv2\.bias is NaN"),
    ],
)
def test_every_key_is_accounted_for(tmp_path, change, message):
    folder = published.write(tmp_path / "published", "step_audio_2", published.random_weights(adaptor=True))
    state = load_file(folder / "model.safetensors") | change
    save_file({key: value for key, value in state.items() if value is not None}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder, "step_audio_2")


def test_wrong_layouts_files_and_configurations_say_so(tmp_path, weights):
    folder = published.write(tmp_path / "published", "whisper", weights)
    with pytest.raises(ValueError, match="unknown layout 'wisper': write one of auto, step_audio_2, whisper"):
        import_encoder(folder, "wisper")
    with pytest.raises(ArtifactError, match="no encoder in layout 'qwen2_audio'; its keys are like model"):
        import_encoder(folder, "qwen2_audio")
    with pytest.raises(ArtifactError, match="no such file or folder"):
        import_encoder(tmp_path / "nowhere", "whisper")
    with pytest.raises(ArtifactError, match="width 128 does not fit 5 heads"):
        import_encoder(folder, "whisper", heads=5)
    (folder / "config.json").write_text(json.dumps(published.published_config("whisper") | {"encoder_layers": 6}))
    with pytest.raises(ArtifactError, match="says depth 6, the weights have 4"):
        import_encoder(folder, "whisper")
    (folder / "config.json").write_text(json.dumps(published.published_config("whisper") | {"scale_embedding": True}))
    with pytest.raises(ArtifactError, match="says scale_embedding True: this toolkit's encoder has False"):
        import_encoder(folder, "whisper")
    (folder / "model.safetensors").write_bytes(b"not a file")
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not a safetensors file"):
        import_encoder(folder, "whisper")
    shards = published.write(tmp_path / "shards", "whisper", weights, shards=3)
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"names model-00002-of-00003\.safetensors, which"):
        import_encoder(shards, "whisper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.conv1.weight": torch.zeros(128)},
            r"conv1\.weight \(as it is named here\) has shape \(128,\)",
        ),
        ({"encoder.conv1.weight": torch.zeros(0, 80, 3)}, r"conv1\.weight .* has shape \(0, 80, 3\)"),
        ({"encoder.conv1.weight": torch.zeros(128, 81, 3)}, "has sizes that no encoder .*: n_mels must be 80 or 128"),
        ({"encoder.conv2.bias": torch.zeros(128, dtype=torch.int8)}, r"conv2\.bias is torch\.int8, not floating point"),
        ({"encoder.blocks.99999999.attn_ln.bias": torch.zeros(128)}, "must have blocks 0 to 4, it has .*99999999"),
        ({"encoder.blocks.x.attn_ln.bias": torch.zeros(128)}, "must have blocks 0 to 4, it has .*x"),
        ({"adapter.linear2.weight": torch.zeros(())}, r"adaptor\.linear2\.weight .* has shape \(\)"),
    ],
)
def test_strange_shapes_and_keys_are_sentences(tmp_path, change, message):
    folder = published.write(tmp_path / "published", "step_audio_2", published.random_weights(adaptor=True))
    save_file(load_file(folder / "model.safetensors") | change, folder / "model.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder, "step_audio_2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", r"model\.safetensors is not a safetensors file"),
        ("config.json", b"[]", r"config\.json is not a model's configuration: it is no object but \[\]"),
        ("config.json", b'{"d_model": NaN}', r"config\.json is not JSON: NaN is no number of JSON"),
        ("config.json", b'{"encoder_attention_heads": "four"}', "does not fit four heads"),
        ("config.json", b'{"encoder_attention_heads": 0}', "does not fit 0 heads"),
    ],
)
def test_strange_files_beside_the_weights_are_sentences(tmp_path, weights, name, content, message):
    folder = published.write(tmp_path / "published", "whisper", weights)
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder, "whisper")
