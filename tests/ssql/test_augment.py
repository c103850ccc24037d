import pytest
import torch

from encoders import SpeechTransformer, VisionEncoder
from ssql.augment import ImageAugmentation, SpeechAugmentation, masked, random_crop, random_resized_crop


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    waveform, lengths = torch.randn(4, 16_000) * 0.1, torch.tensor([16_000, 12_000, 5_000, 400])
    return waveform * (torch.arange(16_000) < lengths[:, None]), lengths


def test_speech_views_differ_are_finite_and_repeat_with_the_seed():
    waveform, lengths = clips()
    encoder, augmentation = SpeechTransformer(width=32, depth=1, heads=2), SpeechAugmentation()
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(augmentation(waveform, lengths, encoder))
    assert torch.equal(views[0][0], views[1][0])
    assert views[0][0].shape != views[2][0].shape or not torch.equal(views[0][0], views[2][0])
    for log_mel, frames in views:
        assert log_mel.isfinite().all()
        assert log_mel.shape[:2] == (4, 80)
        assert (frames >= 2).all()
        assert frames.max() <= log_mel.shape[2]


def test_crop_keeps_a_stretch_of_the_clip():
    waveform = torch.arange(1.0, 2_001).repeat(8, 1)
    cropped, lengths = random_crop(waveform, torch.full((8,), 2_000), 0.5)
    for clip, length in zip(cropped, lengths, strict=True):
        assert 1_000 <= length <= 2_000
        assert torch.equal(clip[:length], torch.arange(float(length)) + clip[0])
        assert (clip[length:] == 0).all()


def test_full_size_resized_crop_changes_nothing():
    log_mel = torch.randn(2, 80, 37)
    assert torch.allclose(random_resized_crop(log_mel, torch.tensor([37, 20]), 1.0), log_mel, atol=1e-4)


def test_masks_hide_at_most_what_they_may():
    hidden = masked(torch.ones(64, 80, 100), torch.full((64,), 100)) == 0
    rows, columns = hidden.all(dim=2).sum(dim=1), hidden.all(dim=1).sum(dim=1)
    assert 0 < rows.max() <= 13
    assert 0 < columns.max() <= 21


@pytest.mark.parametrize("channels", [1, 3])
def test_image_views_have_the_size_and_differ_by_image(channels):
    images = torch.rand(1, channels, 32, 32).repeat(4, 1, 1, 1)
    encoder = VisionEncoder("resnet10t", in_channels=channels)
    views, lengths = ImageAugmentation(image_size=24, blur=True)(images, None, encoder)
    assert views.shape == (4, channels, 24, 24)
    assert lengths is None
    assert not torch.equal(views[0], views[1])
