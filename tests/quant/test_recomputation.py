import threading

import pytest
import torch
from torch import nn

import quant
from quant.recomputation import Moment

INPUTS = torch.linspace(-1, 2, 24).view(2, 2, 6)
VALID = torch.tensor([[True, True], [True, False]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = quant.prepare(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), quant.Policy(shift=True, smooth=True))
    quant.calibrate(model, [INPUTS])
    return model


def test_again_is_at_the_same_bit_width_and_leaves_the_mode_as_it_was(model):
    with quant.at(model, "w2a4"):
        expected, moment = model(INPUTS), Moment(model)
    with moment.again():
        assert torch.equal(model(INPUTS), expected)
    assert not torch.equal(model(INPUTS), expected)
    assert model[0].mode.run.bit_width == quant.FULL_PRECISION


def test_again_has_the_ranges_that_an_observation_of_the_pass_moves(model):
    with quant.observe(model), quant.at(model, "w4a4"):
        moment = Moment(model)
        expected = model(3 * INPUTS)
    moved = model[1].activation_max.clone()
    with moment.again():
        assert torch.equal(model(3 * INPUTS), expected)
    assert torch.equal(model[1].activation_max, moved)
    with quant.at(model, "w4a4"):
        assert not torch.equal(model(3 * INPUTS), expected)


def test_again_is_not_observed(model):
    ranges = []
    for twice in (False, True):
        with quant.observe(model, quant.MovingAverage(0.5)):
            moment = Moment(model)
            model(INPUTS)
            if twice:
                with moment.again():
                    assert model[0].mode.run.observation is not None  # attention computes otherwise without one
                    model(9 * INPUTS)
        ranges.append(model[1].activation_max[0].item())
        quant.calibrate(model, [INPUTS])
    assert ranges[0] == ranges[1]


def test_again_reuses_the_weights_that_were_there_and_no_others(model):
    with quant.at(model, "w4a32", reuse_weights=True):
        before = Moment(model)
        first = model[0].quantized_weight()
        after = Moment(model[1]), Moment(model[0])
    with before.again():
        assert model[0].quantized_weight() is not first
    with after[1].again():
        assert model[0].quantized_weight() is first
    assert [run.weights for run in after[0].runs.values()] == [{}]


def test_again_knows_padding_on_another_thread(model):
    with quant.valid_frames(VALID):
        moment = Moment(model)
    seen = []

    def run():
        with moment.again():
            seen.append(model[0]._valid(INPUTS))
        seen.append(model[0]._valid(INPUTS))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert torch.equal(seen[0].squeeze(2), VALID)
    assert seen[1] is None
