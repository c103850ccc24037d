import pytest
import torch

from encoders.speech.frame_rates import Resampling

RATES = [(50, 25), (50, 50 / 3), (25, 25), (25, 50 / 3), (12.5, 25), (12.5, 50 / 3), (100, 25)]


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_means_over_the_time_that_a_new_frame_covers(rate_in, rate_out):
    frames = torch.randn(2, 23, 3, dtype=torch.float64)
    resampling = Resampling(rate_in, rate_out)
    found, lengths = resampling(frames, torch.tensor([23, 9]))
    # On a grid as fine as both: each frame as often as it lasts, and plain means.
    fine = frames.repeat_interleave(resampling.given, dim=1)
    expected = fine[:, : fine.shape[1] // resampling.taken * resampling.taken]
    expected = expected.unflatten(1, (-1, resampling.taken)).mean(dim=2)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-6)
    # Whole frames only, and as many a second as asked for.
    assert lengths.tolist() == [int(23 * rate_out / rate_in + 1e-9), int(9 * rate_out / rate_in + 1e-9)]


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_padding_and_other_clips_are_invisible(rate_in, rate_out):
    frames = torch.randn(1, 14, 4)
    batch = torch.cat([torch.cat([frames, 1e6 * torch.ones(1, 9, 4)], dim=1), torch.randn(1, 23, 4)])
    resampling = Resampling(rate_in, rate_out)
    alone, length = resampling(frames, torch.tensor([14]))
    together, lengths = resampling(batch, torch.tensor([14, 23]))
    assert lengths[0] == length[0]
    assert torch.equal(together[0, : length[0]], alone[0, : length[0]])


def test_a_clip_shorter_than_a_new_frame_has_none():
    found, lengths = Resampling(50, 50 / 3)(torch.randn(1, 2, 4), torch.tensor([2]))
    assert found.shape == (1, 0, 4)
    assert lengths.tolist() == [0]


def test_a_rate_of_zero():
    with pytest.raises(ValueError, match="rates must be above 0 Hz and at most 1,000 Hz, got 0 and 25"):
        Resampling(0, 25)
