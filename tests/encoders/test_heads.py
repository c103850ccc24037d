import json
import shutil

import pytest
import safetensors.torch
import torch

from encoders import ArtifactError, Head, SpeechTransformer, load_encoder, load_head, save_encoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SpeechTransformer(width=16, depth=1, heads=2)


def test_logits_of_a_clip_and_of_its_frames(encoder):
    mel = torch.randn(2, 80, 30)
    words = Head("classification", 16, ["yes", "no", "maybe"])
    assert words(encoder.embed(mel)).shape == (2, 3)
    tokens = Head("ctc", 16, ["a", "b"], label="text")
    assert tokens(encoder(mel)[0]).shape == (2, 15, 3)  # one more for the blank


def test_regression_answers_in_units():
    head = Head("regression", 4, ["pitch", "energy"], units=["Hz", "dB"])
    head.mean.copy_(torch.tensor([200.0, -30.0]))
    head.std.copy_(torch.tensor([50.0, 5.0]))
    features = torch.randn(3, 4)
    expected = features @ head.linear.weight.T + head.linear.bias
    assert torch.allclose(head(features), expected * torch.tensor([50.0, 5.0]) + torch.tensor([200.0, -30.0]))


@pytest.mark.parametrize(
    "head",
    [
        Head("classification", 16, ["eins", "fünf"], label="word"),
        Head("ctc", 16, [" ", "a", "é"], label="text"),
        Head("regression", 16, ["pitch"], units=["Hz"], label="prosody"),
    ],
    ids=lambda head: head.task,
)
def test_comes_back_beside_its_encoder(encoder, head, tmp_path):
    if head.std is not None:
        head.std.fill_(40.0)
    save_encoder(encoder, tmp_path / "model", head=head)
    again = load_head(tmp_path / "model")
    assert again.arguments == head.arguments
    assert not again.training
    features = torch.randn(2, 16)
    assert torch.equal(again(features), head(features))
    load_encoder(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    names = ["config.json", "head.json", "head.safetensors", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names


def test_an_encoder_without_a_head(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder")
    assert load_head(tmp_path / "encoder") is None
    with pytest.raises(ArtifactError, match="no such folder"):
        load_head(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segmentation", 4, ["a"]), "unknown task of a head 'segmentation': write one of classification, ctc"),
        (("classification", 4, []), "needs names, all different"),
        (("ctc", 4, ["a", "a"]), "needs names, all different"),
        (("regression", 4, ["pitch"]), "one unit a target, others none; got units None"),
        (("classification", 4, ["a"], ["Hz"]), "one unit a target, others none"),
        (("regression", 4, ["pitch", "energy"], ["Hz"]), "one unit a target, others none"),
    ],
)
def test_heads_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Head(*arguments)


def test_damaged_head_says_what_is_wrong(encoder, tmp_path):
    folder = tmp_path / "model"
    save_encoder(encoder, folder, head=Head("classification", 16, ["yes", "no"]))
    config = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps(config | {"classes": ["one"]}))
    with pytest.raises(ArtifactError, match=r"linear.weight has shape \(2, 16\), not \(1, 16\)"):
        load_head(folder)
    (folder / "head.json").write_text(json.dumps(config | {"task": "sing"}))
    with pytest.raises(
        ArtifactError,
        match="head.json does not describe a head: task must be one of .*, not 'sing'",
    ):
        load_head(folder)
    (folder / "head.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(ArtifactError, match="an object with the keys classes, encoder_file_sha256, feature_dim"):
        load_head(folder)
    (folder / "head.json").write_text(json.dumps(config))
    (folder / "head.safetensors").unlink()
    with pytest.raises(ArtifactError, match="head.safetensors is missing"):
        load_head(folder)


def test_a_head_of_another_encoder_and_one_without_its_description(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "model", head=Head("classification", 16, ["yes", "no"]))
    with torch.no_grad():
        next(encoder.parameters()).add_(0.1)
    save_encoder(encoder, tmp_path / "other")
    for name in ("head.json", "head.safetensors"):
        shutil.copy(tmp_path / "model" / name, tmp_path / "other")
    with pytest.raises(ArtifactError, match="head.json belongs to another encoder than the one in its folder"):
        load_head(tmp_path / "other")
    (tmp_path / "other" / "head.json").unlink()
    with pytest.raises(ArtifactError, match="head.json is missing: head.safetensors beside it cannot be read"):
        load_head(tmp_path / "other")


def test_a_head_of_nan_is_refused_and_the_good_one_stays(encoder, tmp_path):
    head = Head("classification", 16, ["yes", "no"])
    save_encoder(encoder, tmp_path / "model", head=head)
    good = safetensors.torch.load_file(tmp_path / "model" / "head.safetensors")
    with torch.no_grad():
        head.linear.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="'linear.bias' is NaN"):
        save_encoder(encoder, tmp_path / "model", overwrite=True, head=head)
    assert torch.equal(load_head(tmp_path / "model").linear.weight, good["linear.weight"])
