"""Features that are NaN or infinite are refused where they would be written, probed or turned into tokens."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encoders import Tokenizer, load_encoder, save_encoder
from ssql.cli import main
from ssql.evaluation.embeddings import check_finite
from ssql.feature_files.recordings import check_features


@pytest.fixture(scope="module")
def overflowing(saved, tmp_path_factory):
    """Folder of an encoder, and its tokenizer, whose weights are finite and whose features are not."""
    encoder = load_encoder(saved)
    with torch.no_grad():
        encoder.conv2.weight.mul_(1e37)
    folder = tmp_path_factory.mktemp("overflowing") / "encoder"
    save_encoder(encoder, folder, tokenizer=Tokenizer(encoder.feature_dim, encoder.frame_rate, 8, 8, 4))
    return folder


@pytest.fixture
def said(monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, str)
        return stopped.value.code

    return run


def test_features_that_are_not_finite_are_not_written(overflowing, said, tmp_path):
    soundfile.write(tmp_path / "talk.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    found = said("features", tmp_path / "talk.wav", "--encoder", overflowing, "--output", tmp_path / "features")
    assert "talk.wav: the features are NaN or infinite at 0.00 s, nothing was written" in found
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "talk.wav"]


def test_the_time_is_that_of_the_first_wrong_frame():
    features = np.zeros((100, 3), np.float32)
    check_features(features, Path("talk.wav"), 60.0, 50.0)
    features[25:, 1] = np.inf
    features[30, 0] = np.nan
    with pytest.raises(ValueError, match=r"^talk\.wav: the features are NaN or infinite at 60\.50 s, nothing was"):
        check_features(features, Path("talk.wav"), 60.0, 50.0)


WORDS = ["--data", "SpokenWords", "--data.languages", "[en-us, de]", "--data.train_size", "20", "--data.test_size=10"]


@pytest.mark.parametrize(
    ("command", "option", "sentence"),
    [
        ("evaluate", "--encoders.a", "embeddings at fp of the split train are NaN or infinite for 20 of 20 items"),
        ("evaluate_tokenizer", "--tokenizers.a", "features at fp in a batch of the split test are NaN or infinite"),
    ],
)
def test_nothing_is_measured_of_them(overflowing, said, tmp_path, command, option, sentence):
    found = said(command, option, overflowing, *WORDS, "--bit_widths", "[fp]", "--output", tmp_path / "results")
    assert sentence in found
    assert not (tmp_path / "results").exists()


def test_the_first_wrong_item_is_named():
    values = torch.zeros(5, 2, 3)
    check_finite(values, "features")
    values[3, 1, 2] = torch.nan
    values[4] = torch.inf
    with pytest.raises(ValueError, match="^features are NaN or infinite for 2 of 5 items, the first of them item 3:"):
        check_finite(values, "features")
