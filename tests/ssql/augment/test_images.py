import pytest
import torch

from encoders import VisionEncoder
from ssql.augment import ImageAugmentation


@pytest.mark.parametrize("channels", [1, 3])
def test_image_views_have_the_size_and_differ_by_image(channels):
    images = torch.rand(1, channels, 32, 32).repeat(4, 1, 1, 1)
    encoder = VisionEncoder("resnet10t", in_channels=channels)
    views, lengths = ImageAugmentation(image_size=24, blur=True)(images, None, encoder)
    assert views.shape == (4, channels, 24, 24)
    assert lengths is None
    assert not torch.equal(views[0], views[1])
