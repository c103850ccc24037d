import functools
import sys

import pytest
import torch

import quant
from encoders import SpeechTransformer, save_encoder
from ssql import cli
from ssql.data import spoken_words
from ssql.data.espeak import synthesize


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Folder of a calibrated encoder that has learned nothing."""
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    quant.calibrate(encoder, [torch.randn(4, 80, 60)], observer="mse")
    folder = tmp_path_factory.mktemp("pretrained") / "encoder"
    save_encoder(encoder.eval(), folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of an encoder calibrated on noise."""
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    folder = tmp_path_factory.mktemp("saved") / "encoder"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture
def ssql(monkeypatch):
    """`ssql` with these words, as they are typed; what it raises and exits with comes through."""

    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        cli.main()

    return run


@pytest.fixture
def speak_once(monkeypatch):
    """The same clips serve every run of a process."""
    monkeypatch.setattr(spoken_words, "synthesize", lambda utterances: spoken(tuple(utterances)))


@functools.cache
def spoken(utterances):
    return list(synthesize(utterances))
