import pytest
import torch

import quant
from encoders import SpeechTransformer


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2)).eval()
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder
