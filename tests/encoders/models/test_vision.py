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


def test_images_that_do_not_fit_are_said_with_both_sizes():
    arguments = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 8, "num_heads": 2}
    encoder = VisionEncoder("vit_tiny_patch16_224", model_arguments=arguments)
    with pytest.raises(ValueError, match=r"images of 64x48 do not fit vit_tiny_.*: .*64.* match model \(32\); give"):
        encoder.embed_raw(torch.rand(1, 3, 64, 48))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 32, 32\) do not fit: .* takes \(batch, 3, height, width\)"):
        encoder.embed_raw(torch.rand(1, 1, 32, 32))
    free = VisionEncoder("vit_tiny_patch16_224", model_arguments=arguments | {"dynamic_img_size": True})
    assert free.embed_raw(torch.rand(1, 3, 64, 48)).shape == (1, 8)
    fewer = VisionEncoder("resnet10t", model_arguments={"layers": [1, 1]})
    with pytest.raises(ValueError, match=r'resnet10t does not run with model_arguments {"layers": \[1, 1\]}: .*layer3'):
        fewer.embed_raw(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="has 'device', which resnet10t does not take"):
        VisionEncoder("resnet10t", model_arguments={"device": "meta"})
    assert VisionEncoder("resnet10t").embed_raw(torch.rand(1, 3, 40, 24)).shape == (1, 512)
