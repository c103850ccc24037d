import torch

from ssql.augment.log_mels import masked, random_resized_crop


def test_full_size_resized_crop_changes_nothing():
    log_mel = torch.randn(2, 80, 37)
    assert torch.allclose(random_resized_crop(log_mel, torch.tensor([37, 20]), 1.0), log_mel, atol=1e-4)


def test_masks_hide_at_most_what_they_may():
    hidden = masked(torch.ones(64, 80, 100), torch.full((64,), 100)) == 0
    rows, columns = hidden.all(dim=2).sum(dim=1), hidden.all(dim=1).sum(dim=1)
    assert 0 < rows.max() <= 13
    assert 0 < columns.max() <= 21
