import torch

from quant.ranges.sampling import channel_statistics, subsample


def test_subsample_is_even_deterministic_and_visits_every_channel():
    values = torch.arange(144).repeat(64 * 50, 1).view(64, 50, 144).float()
    picked = subsample(values, None, 4096)
    assert picked.shape == (4096,)
    assert torch.equal(picked, subsample(values, None, 4096))
    assert picked.long().bincount(minlength=144).min() >= 28


def test_subsample_takes_all_of_a_small_tensor_and_follows_the_memory_layout():
    values = torch.randn(2, 3, 4, 5)
    assert torch.equal(subsample(values, None, 1000), values.flatten())
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(subsample(last, None, 1000), values.permute(0, 2, 3, 1).flatten())
    assert subsample(torch.tensor(3.0), None, 4).tolist() == [3.0]


def test_subsample_marks_padding():
    values = torch.arange(12.0).view(2, 3, 2)
    valid = torch.tensor([[True, True, True], [True, False, False]]).view(2, 3, 1)
    picked = subsample(values.transpose(1, 2), valid.transpose(1, 2), 100)
    assert picked[:8].tolist() == list(range(8))
    assert picked[8:].isnan().all()


def test_samples_are_whole_frames_from_everywhere():
    values = torch.arange(1000.0).view(1000, 1).expand(1000, 6).reshape(10, 100, 6)
    samples = channel_statistics(values, None, 600).samples
    assert samples.shape == (101, 6)
    assert (samples == samples[:, :1]).all()
    assert len({int(frame) % 10 for frame in samples[:, 0]}) == 10


def test_samples_do_not_keep_the_whole_tensor():
    values = torch.randn(2, 50, 8)
    for samples in (subsample(values, None, 10), channel_statistics(values, None, 10).samples):
        assert samples.untyped_storage().nbytes() == samples.nbytes


def test_statistics_of_channels_leave_padding_out():
    values, valid = torch.randn(2, 5, 3), torch.ones(2, 5, 1, dtype=torch.bool)
    valid[1, 2:] = False
    found = channel_statistics(values.where(valid, 99), valid, 6)
    real = torch.cat([values[0], values[1, :2]])
    assert torch.equal(found.low, real.amin(0))
    assert torch.equal(found.high, real.amax(0))
    assert torch.allclose(found.total, real.sum(0), atol=1e-6)
    assert found.frames == 7
    assert not (found.samples == 99).any()
