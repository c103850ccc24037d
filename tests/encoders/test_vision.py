import pytest
import torch

from encoders import VisionEncoder


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"model_name": "resnet18", "small_images": True}, (2, 3, 32, 32)),
        ({"model_name": "resnet10t", "in_channels": 1}, (2, 1, 64, 64)),
        (
            {
                "model_name": "vit_tiny_patch16_224",
                "in_channels": 1,
                "model_arguments": {"img_size": 8, "patch_size": 2},
            },
            (2, 1, 8, 8),
        ),
    ],
)
def test_timm_models_embed_images(arguments, shape):
    encoder = VisionEncoder(**arguments).eval()
    assert encoder.embed_raw(torch.rand(shape)).shape == (2, encoder.feature_dim)


def test_small_image_stem_keeps_the_resolution():
    encoder = VisionEncoder("resnet18", small_images=True)
    assert encoder.model.forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_unknown_model_and_stem_are_errors():
    with pytest.raises(ValueError, match="no model 'resnet19x'; close names"):
        VisionEncoder("resnet19x")
    with pytest.raises(ValueError, match="small_images knows ResNets only, not 'vit_tiny_patch16_224'"):
        VisionEncoder("vit_tiny_patch16_224", small_images=True)
