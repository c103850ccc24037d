import functools

import pytest
import torch

import quant
from encoders import SpeechTransformer
from ssql.data import spoken_words
from ssql.data.espeak import synthesize


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Folder of a calibrated encoder that has learned nothing."""
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    quant.calibrate(encoder, [torch.randn(4, 80, 60)], observer="mse")
    folder = tmp_path_factory.mktemp("pretrained") / "encoder"
    encoder.eval().save_pretrained(folder)
    return folder


@pytest.fixture
def speak_once(monkeypatch):
    """The same clips serve every run of a process."""
    monkeypatch.setattr(spoken_words, "synthesize", lambda utterances: spoken(tuple(utterances)))


@functools.cache
def spoken(utterances):
    return list(synthesize(utterances))
