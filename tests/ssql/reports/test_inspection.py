import numpy as np
import pytest
import torch

import quant
from encoders import SpeechTransformer
from ssql.data import SpokenWords
from ssql.reports.inspection import activation_histograms, histogram, range_table, weight_histograms


def test_a_histogram_holds_every_value_and_its_percentiles():
    values = torch.linspace(-1, 3, 4001)
    found = histogram(values)
    assert found.counts.sum() == 4001
    assert (found.edges[0], found.edges[-1]) == (-1, 3)
    np.testing.assert_allclose(found.percentiles, [-1, -0.996, -0.96, 1, 2.96, 2.996, 3], atol=1e-6)
    assert range_table({"layer": found})[0] == ["layer", "-1", "-0.996", "-0.96", "1", "2.96", "2.996", "3"]


def test_every_quantized_layer_has_its_weight_and_its_input():
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2))
    data = SpokenWords(train_size=16, test_size=1, batch_size=16)
    names = list(quant.quant_layers(encoder))
    weights, activations = weight_histograms(encoder), activation_histograms(encoder, data, 1)
    assert list(weights) == list(activations) == names
    name = names[0]
    batch = next(iter(data.evaluation_dataloader("train")))
    log_mel, frames = encoder.front_end(batch["inputs"], batch["lengths"])
    real = torch.cat([clip[:, :length].flatten() for clip, length in zip(log_mel, frames, strict=True)])
    # The first layer's input is the log-mel: samples of it, padding left out.
    assert activations[name].percentiles[3] == pytest.approx(float(real.median()), abs=0.1)
    assert weights[name].counts.sum() == quant.quant_layers(encoder)[name].weight.numel()
