import json

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from encoders import (
    ArtifactError,
    SpeechTransformer,
    Tokenizer,
    deinterleave,
    load_encoder,
    load_tokenizer,
    save_encoder,
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SpeechTransformer(width=16, depth=1, heads=2).eval()


@pytest.fixture
def tokenizer():
    torch.manual_seed(1)
    tokenizer = Tokenizer(16, 50.0, linguistic_codes=8, semantic_codes=32, code_dim=4)
    tokenizer.mean.copy_(torch.randn(16))
    return tokenizer.eval().requires_grad_(False)


def test_tokens_are_the_nearest_codes_of_mean_frames(encoder, tokenizer):
    with torch.no_grad():
        features, lengths = encoder(torch.randn(2, 80, 120), torch.tensor([120, 60]))
        tokens = tokenizer(features, lengths)
    assert [count.tolist() for count in (tokens.linguistic_lengths, tokens.semantic_lengths)] == [[20, 10], [30, 15]]
    frames = features.double() - tokenizer.mean
    thirds, pairs = (frames.unflatten(1, (-1, size)).mean(dim=2) for size in (3, 2))
    linguistic = torch.cdist(thirds, tokenizer.linguistic.codebook.double()).argmin(dim=-1)
    projected = pairs @ tokenizer.semantic.projection.weight.double().T
    semantic = torch.cdist(projected, tokenizer.semantic.codebook.double()).argmin(dim=-1)
    assert torch.equal(tokens.linguistic[0], linguistic[0])
    assert torch.equal(tokens.semantic[0], semantic[0])
    assert torch.equal(tokens.semantic[1, :15], semantic[1, :15])
    assert (tokens.linguistic[1, 10:] == -1).all()
    assert (tokens.semantic[1, 15:] == -1).all()


def test_the_training_librarys_quantizer_gives_the_same_codes():
    quantizer = VectorQuantize(16, 32, kmeans_init=True)
    quantizer(5 + torch.randn(1, 400, 16))
    tokenizer = Tokenizer(16, 50 / 3, linguistic_codes=32)
    tokenizer.linguistic.codebook.copy_(quantizer.codebook)
    frames = 5 + torch.randn(3, 50, 16)
    tokens = tokenizer(frames, torch.tensor([50, 50, 50])).linguistic
    assert torch.equal(tokens, quantizer.eval()(frames)[1])


def test_large_means_do_not_cost_digits():
    frames = torch.randn(1, 200, 16)
    tokenizer = Tokenizer(16, 50 / 3, linguistic_codes=256)
    expected = tokenizer(frames, torch.tensor([200])).linguistic
    tokenizer.mean.fill_(512.0)
    found = tokenizer(frames + 512, torch.tensor([200])).linguistic
    assert (found == expected).float().mean() > 0.99  # the sum itself loses digits


def test_padding_and_other_clips_are_invisible(encoder, tokenizer):
    clips = [torch.randn(80, frames) for frames in (47, 90, 5)]
    batch = torch.nn.utils.rnn.pad_sequence([clip.T for clip in clips], batch_first=True).transpose(1, 2)
    with torch.no_grad():
        together = tokenizer.sequences(tokenizer(*encoder(batch, torch.tensor([47, 90, 5]))))
        alone = [tokenizer.sequences(tokenizer(*encoder(clip.unsqueeze(0))))[0] for clip in clips]
    assert [len(sequence) for sequence in alone] == [20, 35, 0]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    linguistic, semantic = deinterleave(alone[1], tokenizer.offset)
    assert (len(linguistic), len(semantic)) == (14, 21)


def test_comes_back_beside_its_encoder(encoder, tokenizer, tmp_path):
    save_encoder(encoder, tmp_path / "model", tokenizer=tokenizer)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.safetensors"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names
    again = load_tokenizer(tmp_path / "model")
    assert again.arguments == tokenizer.arguments
    assert not again.training
    with torch.no_grad():
        features = load_encoder(tmp_path / "model")(torch.randn(2, 80, 60))
        for found, expected in zip(again(*features), tokenizer(*features), strict=True):
            assert torch.equal(found, expected)
    save_encoder(encoder, tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare") is None


def test_the_tokenizer_of_another_encoder(encoder, tmp_path):
    for other in (Tokenizer(24, 50.0), Tokenizer(16, 25.0)):
        with pytest.raises(ValueError, match="speech_transformer encoder gives 16 at 50 Hz"):
            save_encoder(encoder, tmp_path / "model", tokenizer=other)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("sizes", [{"linguistic_codes": 1}, {"semantic_codes": 0}, {"code_dim": 0}])
def test_codebooks_of_nothing(sizes):
    with pytest.raises(ValueError, match="codebooks need two codes or more, and a width above 0"):
        Tokenizer(16, 50.0, **sizes)


def test_damaged_tokenizer_says_what_is_wrong(encoder, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_encoder(encoder, folder, tokenizer=tokenizer)
    config = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(config | {"linguistic_codes": 9}))
    with pytest.raises(ArtifactError, match=r"linguistic.codebook has shape \(8, 16\), not \(9, 16\)"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps(config | {"frame_rate": -1}))
    with pytest.raises(ArtifactError, match="tokenizer.json does not describe a tokenizer: rates must be above 0 Hz"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'linguistic.codebook' is NaN"):
        tokenizer.linguistic.codebook.fill_(torch.nan)
        save_encoder(encoder, folder, overwrite=True, tokenizer=tokenizer)
    assert load_tokenizer(folder).linguistic.codebook.isfinite().all()
