import pytest
import torch

import quant
from encoders import SpeechTransformer
from ssql.data import SpokenWords
from ssql.evaluation import calibration


@pytest.mark.parametrize(("asked", "there"), [(8, 2), (1, 1)])
def test_progress_ends_where_the_batches_do(asked, there, monkeypatch):
    data = SpokenWords(languages=["de"], train_size=3, test_size=1, batch_size=2)
    totals, seen = [], []

    def track(batches, description, total):
        totals.append(total)
        for batch in batches:
            seen.append(len(batch["inputs"]))
            yield batch

    monkeypatch.setattr(calibration, "track", track)
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2)).eval()
    calibration.calibrate_on(encoder, data, asked)
    assert (totals, seen) == ([there], [2, 1][:there])
    calibration.correct_bias_on(encoder, data, asked, "w8a8")
    assert set(totals) == {there}
