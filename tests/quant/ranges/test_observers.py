import numpy as np
import pytest
import torch
from torch import nn

import quant
from quant.ranges.observers import OBSERVERS, Seen


def one_layer(**policy) -> nn.Sequential:
    torch.manual_seed(0)
    return quant.prepare(nn.Sequential(nn.Linear(6, 4)), quant.Policy(first_layer="w8", **policy))


def long_tailed(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values * values.square()


@pytest.mark.parametrize("observer", OBSERVERS)
def test_one_calibration_serves_every_bit_width(observer):
    model = one_layer()
    quant.calibrate(model, [long_tailed(64, 6), long_tailed(64, 6, seed=1)], observer=observer)
    for bits in range(2, 9):
        with quant.at(model, f"w{bits}a{bits}"):
            assert model(torch.randn(2, 6)).isfinite().all()


def numpy_best_clip(values: np.ndarray, bits: int) -> tuple[float, float]:
    """Every ratio tried in turn on the asymmetric grid with zero on it."""
    best = (np.inf, 0.0, 0.0)
    for ratio in 2.0 ** (-np.arange(21) / 5):
        limit = np.abs(values).max() * ratio
        low, high = min(max(values.min(), -limit), 0), max(min(values.max(), limit), 0)
        scale = (high - low) / (2**bits - 1)
        zero_point = np.rint(-low / scale)
        integers = np.clip(np.rint(values / scale) + zero_point, 0, 2**bits - 1)
        error = np.square((integers - zero_point) * scale - values).sum()
        best = min(best, (error, low, high))
    return best[1], best[2]


@pytest.mark.parametrize("bits", range(2, 9))
def test_mse_is_the_best_of_all_clips_written_out(bits):
    model, values = one_layer(), long_tailed(40, 6)
    quant.calibrate(model, [values], observer="mse")
    low, high = numpy_best_clip(values.double().numpy().ravel(), bits)
    layer = model[0]
    assert layer.activation_min[bits - 2].item() == pytest.approx(low, rel=1e-5)
    assert layer.activation_max[bits - 2].item() == pytest.approx(high, rel=1e-5)


def test_mse_clips_more_at_fewer_bits_and_loses_less_than_min_max():
    values = long_tailed(500, 6)
    clipped, whole = one_layer(), one_layer()
    quant.calibrate(clipped, [values], observer="mse")
    quant.calibrate(whole, [values])
    highs = clipped[0].activation_max
    assert (highs.diff() >= 0).all() and highs[0] < 0.5 * highs[-1]
    for bits in range(2, 9):
        errors = [
            (quant.fake_quantize_activation(values, *model[0].activation_qparams(bits), bits) - values).square().sum()
            for model in (clipped, whole)
        ]
        assert errors[0] <= errors[1]


def test_mse_keeps_the_short_tail_of_a_gelu():
    model = one_layer()
    values = nn.functional.gelu(torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)))
    quant.calibrate(model, [values], observer="mse")
    assert model[0].activation_min[2] == values.min()
    assert model[0].activation_max[2] < 0.8 * values.max()


def test_mse_for_one_run_finds_the_same_range_and_no_other():
    values = long_tailed(40, 6)
    every, one = one_layer(), one_layer()
    for model, run in ((every, None), (one, "w8a4")):
        with quant.observe(model, "mse", run):
            model(values)
    assert torch.equal(one[0].activation_max[2], every[0].activation_max[2])
    with quant.at(one, "w2a4"):
        one(values)
    with pytest.raises(quant.NotCalibratedError, match="no activation range for w8a8"), quant.at(one, "w8a8"):
        pass


def test_moving_average_goes_on_from_step_to_step_and_starts_afresh_for_a_calibration():
    model, observer = one_layer(), quant.MovingAverage(0.75)
    for top in (4.0, 8.0, 0.0):
        with quant.observe(model, observer):
            model(torch.full((1, 6), top))
    assert model[0].activation_max.tolist() == [0.75 * (0.75 * 4 + 0.25 * 8)] * 7
    quant.calibrate(model, [torch.full((1, 6), top) for top in (1.0, 2.0)], observer=observer)
    assert model[0].activation_max.tolist() == [1.25] * 7


def test_moving_average_keeps_the_range_of_a_layer_without_a_pass():
    model = quant.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with quant.observe(model, "moving_average"):
        model(torch.ones(1, 2))
    kept = model[1].activation_max.clone()
    with quant.observe(model, "moving_average"):
        model[0](torch.zeros(1, 2))
    assert torch.equal(model[1].activation_max, kept)
    assert model[0].activation_max[0] == pytest.approx(0.9)


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "mse"])
def test_padding_changes_nothing(observer):
    frames, mask = long_tailed(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    padded, alone = one_layer(), one_layer()
    with quant.observe(padded, observer), quant.valid_frames(mask):
        padded(frames.where(mask.unsqueeze(-1), 99))
    with quant.observe(alone, observer):
        alone(torch.cat([frames[0], frames[1, :3]]))
    assert torch.allclose(padded[0].activation_max, alone[0].activation_max)
    assert torch.allclose(padded[0].activation_min, alone[0].activation_min)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_layer_without_a_pass_is_not_calibrated(observer):
    model = quant.prepare(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), quant.Policy(first_layer="w8"))
    for used in ([], [model[0]]):
        with quant.observe(model, observer):
            for layer in used:
                layer(torch.ones(1, 2))
        with pytest.raises(quant.NotCalibratedError, match="layer '1'" if used else "layer '0'"):
            quant.at(model, "w8a8").__enter__()


def test_bfloat16_and_float_passes_mix():
    model = quant.prepare(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)))
    for observer in OBSERVERS:
        with quant.observe(model, observer), torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(8, 4))
        assert model[2].activation_max.dtype == torch.float32
        assert model[2].activation_max.isfinite().all()


def test_a_clipped_model_comes_back_from_its_state():
    model, again = one_layer(), one_layer()
    quant.calibrate(model, [long_tailed(64, 6)], observer="mse")
    again.load_state_dict(model.state_dict())
    inputs = torch.randn(5, 6)
    with quant.at(model, "w4a4"), quant.at(again, "w4a4"):
        assert torch.equal(model(inputs), again(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quant.MovingAverage(1.0), "momentum of a moving average must be"),
        (lambda: quant.MeanSquaredError(samples=0), "at least one sample of each pass, got 0"),
        (lambda: quant.observe(one_layer(), "maximum").__enter__(), "'maximum': write one of min_max, moving_average"),
    ],
)
def test_impossible_observers_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_observer_of_ones_own():
    class Half:
        samples, by_bits = 0, False

        def ranges(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
            return seen.low.amin(1, keepdim=True) / 2, seen.high.amax(1, keepdim=True) / 2

    model = one_layer()
    quant.calibrate(model, [torch.tensor([[-2.0, 4, 0, 0, 0, 0]])], observer=Half())
    assert (model[0].activation_min[0], model[0].activation_max[0]) == (-1, 2)
