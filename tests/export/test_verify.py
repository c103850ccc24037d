import copy
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import export
import quant
from encoders import SpeechTransformer
from export.verify import _worst


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2))
    quant.calibrate(encoder, [torch.randn(2, 80, 60)])
    return encoder.eval()


@pytest.fixture(scope="module")
def file(encoder, tmp_path_factory):
    return export.to_onnx(encoder, tmp_path_factory.mktemp("onnx") / "encoder.onnx", "w4a8")


def test_a_good_file_passes_on_clips_alone_and_padded_beside_an_empty_one(encoder, file):
    result = export.verify(file, encoder, "w4a8")
    assert result.passed
    assert (result.layers, result.clips) == (8, 9)
    assert result.to_dict()["passed"] is True


def test_a_changed_weight_fails_and_names_its_layer(encoder, file):
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.blocks[0].mlp[0].weight.mul_(-1)
    result = export.verify(file, other, "w4a8")
    assert not result.passed
    assert result.first_difference == "blocks.0.mlp.0"


def test_changed_ranges_fail(encoder, file):
    other = copy.deepcopy(encoder)
    other.blocks[0].attn.out.activation_max.mul_(1.5)
    assert export.verify(file, other, "w4a8").first_difference == "blocks.0.attn.out"


def test_another_clipping_range_fails(encoder, tmp_path):
    path = export.to_onnx(encoder, tmp_path / "encoder.onnx", "w4a4")
    proto = onnx.load(path)
    clip = next(node for node in proto.graph.node if node.op_type == "Clip")
    ends = {tensor.name: tensor for tensor in proto.graph.initializer}
    end = ends[clip.input[2]]
    end.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(end) * np.float32(1.01), end.name))
    onnx.save(proto, path)
    assert export.verify(path, encoder, "w4a4").first_difference is not None


def test_wrong_features_fail_and_the_layer_is_named(encoder, file, tmp_path):
    proto = onnx.load(file)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "encoder.blocks.0.mlp.2.bias")
    values = np.random.default_rng(0).standard_normal(bias.dims).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(values * 9, bias.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    result = export.verify(tmp_path / "wrong.onnx", encoder, "w4a8")
    assert (result.passed, result.first_difference) == (False, None)
    assert result.smallest_cosine < 0.99
    assert result.ties_only is False
    assert result.departure == "features depart after layer blocks.0.mlp.2"


def test_one_clip_of_nan_is_the_worst():
    assert math.isnan(_worst([1.0, math.nan], min))
    assert math.isnan(_worst([1.0, math.nan], max))
    assert not export.Verification("x", "fp", 0, None, True, math.nan, 0.0, 1).passed


def test_clips_of_the_caller_are_used(encoder, file):
    clips = [torch.randn(samples) * 0.1 for samples in (4_000, 9_999)]
    result = export.verify(file, encoder, "w4a8", clips)
    assert (result.passed, result.clips) == (True, 5)


def test_verifying_leaves_the_encoder_as_it_was(encoder, file):
    encoder.train()
    export.verify(file, encoder, "w4a8")
    assert encoder.training
    encoder.eval()


def test_files_of_something_else_are_named(encoder, file, tmp_path):
    with pytest.raises(export.VerificationError, match="at w4a8, not speech_transformer at w8a8"):
        export.verify(file, encoder, "w8a8")
    with pytest.raises(export.VerificationError, match='arguments .*"width": 32.*, not .*"width": 64'):
        export.verify(file, SpeechTransformer(width=64, depth=1, heads=2), "w4a8")
    with pytest.raises(FileNotFoundError, match="nowhere.onnx does not exist"):
        export.verify("nowhere.onnx", encoder, "w4a8")
    (tmp_path / "text.onnx").write_bytes(b"no graph")
    with pytest.raises(export.VerificationError, match=r"text\.onnx is not an ONNX file"):
        export.verify(tmp_path / "text.onnx", encoder, "w4a8")
    with pytest.raises(export.VerificationError, match=r"text\.onnx does not start in ONNX Runtime"):
        export.integer_operators(tmp_path / "text.onnx")
    proto = onnx.load(file)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(export.VerificationError, match=r"bare\.onnx was not written by export\.to_onnx"):
        export.verify(tmp_path / "bare.onnx", encoder, "w4a8")
