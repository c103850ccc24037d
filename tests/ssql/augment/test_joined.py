import pytest
import torch

from encoders import SpeechTransformer, VisionEncoder
from ssql.augment import Joined


def test_clips_are_joined_to_as_few_windows_as_they_fill():
    encoder = SpeechTransformer(width=16, depth=1, heads=2, positions=150, log_mel="whisper_filled")
    clips = torch.ones(4, 20_000)
    lengths = torch.tensor([16_000, 8_000, 20_000, 4_000])
    torch.manual_seed(0)
    heard = []
    encoder.front_end.forward = lambda inputs, lengths: heard.append((inputs, lengths))
    Joined(seconds=2.5)(clips, lengths, encoder)
    windows, lasting = heard[0]
    assert len(windows) == 2
    for window, length, samples in zip(windows, lasting, (24_000, 24_000), strict=True):
        assert window.sum() == samples  # all of both clips
        pause = int(length) - samples
        assert 1_600 <= pause <= 9_600
        assert not window[int(length) :].any()
    torch.manual_seed(0)
    Joined(seconds=2.5)(clips, lengths, encoder)
    assert torch.equal(heard[1][0], windows)


def test_a_longer_clip_is_cut_and_images_are_refused():
    encoder = SpeechTransformer(width=16, depth=1, heads=2, positions=150, log_mel="whisper_filled")
    log_mel, frames = Joined(seconds=1)(torch.randn(1, 40_000), torch.tensor([40_000]), encoder)
    expected, _ = encoder.front_end(torch.zeros(1, 16_000), torch.tensor([16_000]))
    assert log_mel.shape == expected.shape
    assert frames.tolist() == [300]
    with pytest.raises(ValueError, match="ssql.augment.Unchanged"):
        Joined()(torch.rand(1, 1, 28, 28), None, VisionEncoder("resnet10t", in_channels=1))
    with pytest.raises(ValueError, match="seconds"):
        Joined(seconds=0.5)
