import pytest
import torch
from torch import nn

import quant
from quant.bias_correction import rounded_bit_widths


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_one_call_is_its_parts():
    batches = [torch.randn(8, 6) for _ in range(3)]
    policy = quant.Policy(first_layer="w8a8")
    whole = quant.quantize(network(), batches, "w4a8", "w2a4", policy=policy, observer="mse")
    parts = quant.prepare(network(), policy)
    quant.calibrate(parts, batches, observer="mse")
    for bit_width in ("w4a8", "w2a4"):
        list(quant.round_weights(parts, bit_width, batches))
    for bit_width in ("fp", "w4a8", "w2a4"):
        with torch.no_grad(), quant.at(whole, bit_width), quant.at(parts, bit_width):
            assert torch.equal(whole(batches[0]), parts(batches[0]))
    assert [str(run) for run in quant.corrected_bit_widths(whole)] == ["w4a8", "w2a4"]
    nearest = quant.quantize(network(), batches, "w4a8", rounding="nearest")
    assert [str(run) for run in quant.corrected_bit_widths(nearest)] == ["w4a8"]
    assert rounded_bit_widths(nearest) == []
    assert rounded_bit_widths(quant.quantize(network(), batches, "w8a8")) == []  # a range for each token
    assert len(rounded_bit_widths(quant.quantize(network(), batches, "w8a8", policy=quant.Policy()))) == 1


def test_bit_widths_are_looked_at_first():
    for wrong, message in (((), "give the bit-widths"), (("w9a9",), "w9a9"), (("fp",), "full precision")):
        model = network()
        with pytest.raises(ValueError, match=message):
            quant.quantize(model, [torch.randn(8, 6)], *wrong)
        assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="unknown rounding 'blocks': write one of outputs, nearest"):
        quant.quantize(model, [torch.randn(8, 6)], "w8a8", rounding="blocks")
    assert type(model[0]) is nn.Linear
