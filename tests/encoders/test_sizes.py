"""Encoders of no size, as they are built and as a folder describes them."""

import json
import math

import pytest

from encoders import (
    Conformer,
    Head,
    HuBERT,
    MelCNN,
    SpeechTransformer,
    StreamingTransformer,
    VisionEncoder,
    Wav2Vec2,
    load_encoder,
    save_encoder,
)
from encoders.storage.folder import ArtifactError

SIZES = {
    SpeechTransformer: ("n_mels", "width", "depth", "heads", "pooling", "adaptor_dim", "positions"),
    StreamingTransformer: ("n_mels", "width", "depth", "heads", "pooling", "adaptor_dim", "chunk", "left_chunks"),
    Conformer: ("n_mels", "width", "depth", "heads", "kernel"),
    Wav2Vec2: ("width", "depth", "heads", "extractor_width", "position_kernel", "position_groups", "normalize_epsilon"),
    HuBERT: ("depth",),
    MelCNN: ("n_mels", "time_stride"),
    VisionEncoder: ("in_channels",),
}


@pytest.mark.parametrize(("encoder", "name"), [(encoder, name) for encoder, names in SIZES.items() for name in names])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_below_one_is_named(encoder, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value}$"):
        encoder(**{name: value})


def test_widths_that_positions_cannot_have():
    with pytest.raises(ValueError, match="width must be 4 or more, got 2"):
        SpeechTransformer(width=2, heads=1)


@pytest.mark.parametrize(("name", "value"), [("std", 0), ("std", math.nan), ("mean", math.inf)])
def test_pixels_that_normalization_would_lose(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        VisionEncoder("test_resnet", **{name: value})


def test_a_head_without_features():
    with pytest.raises(ValueError, match="feature_dim must be 1 or more, got 0"):
        Head("classification", 0, ["a", "b"])


def test_a_folder_that_describes_an_empty_encoder(tmp_path):
    save_encoder(SpeechTransformer(width=16, depth=1, heads=2), tmp_path / "encoder")
    path = tmp_path / "encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["arguments"]["depth"] = -1
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config.json does not describe .*depth must be a whole number from 1"):
        load_encoder(tmp_path / "encoder")
