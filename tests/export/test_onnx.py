import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

import export
import quant
from encoders import SpeechTransformer, VisionEncoder

BIT_WIDTHS = ["fp", "w8a8", "w4a8", "w4a4", "w2a8"]


@pytest.fixture(scope="module")
def speech() -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=64, depth=2, heads=2, pooling=2))
    clips = torch.randn(4, 16_000) * torch.rand(4, 1)
    quant.calibrate(encoder, [encoder.front_end(clips)], lambda batch: encoder(*batch))
    return encoder.eval()


@pytest.fixture(scope="module")
def files(speech, tmp_path_factory) -> dict[str, os.PathLike]:
    folder = tmp_path_factory.mktemp("onnx")
    return {b: export.to_onnx(speech, folder / f"{b}.onnx", b) for b in BIT_WIDTHS}


def session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bit_width", BIT_WIDTHS)
def test_features_equal_torchs_at_that_bit_width(speech, files, bit_width):
    run = session(files[bit_width])
    for batch, samples in ((1, 3_000), (1, 40_000), (3, 11_111)):
        waveform = torch.randn(batch, samples) * 0.3
        lengths = torch.linspace(samples, samples // 2, batch).long()
        for clip, length in zip(waveform, lengths, strict=True):
            clip[length:] = 0
        mel, frames = speech.front_end(waveform, lengths)
        features, feature_lengths = run.run(None, {"log_mel": mel.numpy(), "lengths": frames.numpy()})
        with torch.no_grad(), quant.at(speech, bit_width):
            expected, expected_lengths = speech(mel, frames)
        assert np.array_equal(feature_lengths, expected_lengths)
        cosine = torch.cosine_similarity(torch.from_numpy(features).flatten(1), expected.flatten(1))
        assert cosine.min() > 0.999


def unpack_int4(tensor: onnx.TensorProto) -> np.ndarray:
    packed = np.frombuffer(tensor.raw_data, np.uint8)
    pairs = np.stack([packed & 0xF, packed >> 4], axis=1).flatten()[: np.prod(tensor.dims)].astype(np.int64)
    return np.where(pairs > 7, pairs - 16, pairs).reshape(tensor.dims)


@pytest.mark.parametrize(("bit_width", "bits"), [("w8a8", 8), ("w4a8", 4), ("w2a8", 2)])
def test_integers_in_the_file_equal_quants(speech, files, bit_width, bits):
    stored = {tensor.name: tensor for tensor in onnx.load(files[bit_width]).graph.initializer}
    checked = 0
    for name, layer in list(quant.quant_layers(speech).items())[1:]:
        integers, scale = quant.quantize_weight(layer.weight, bits)
        expected = integers.numpy().T if integers.dim() == 2 else integers.numpy()
        key = f"encoder.{name}.weight_integers"
        if bits <= 4:
            assert stored[key + ".int4"].data_type == TensorProto.INT4
            found = unpack_int4(stored[key + ".int4"])
        else:
            found = onnx.numpy_helper.to_array(stored[key])
        assert np.array_equal(found, expected)
        found_scale = onnx.numpy_helper.to_array(stored[f"encoder.{name}.weight_scale"])
        assert np.array_equal(found_scale, scale.flatten().numpy())
        checked += 1
    assert checked == 13


def test_padding_is_invisible_in_the_file(speech, files):
    run = session(files["w4a8"])
    mel, _ = speech.front_end(torch.randn(1, 8_000))
    alone = run.run(None, {"log_mel": mel.numpy(), "lengths": np.array([50])})[0]
    padded = np.pad(mel.numpy(), ((0, 0), (0, 0), (0, 70)), constant_values=3)
    batch = np.concatenate([padded, np.random.default_rng(0).standard_normal(padded.shape, np.float32)])
    together = run.run(None, {"log_mel": batch, "lengths": np.array([50, 120])})[0]
    assert np.allclose(together[0, : alone.shape[1]], alone[0], atol=1e-5)


def test_int4_file_is_small_and_its_products_are_integer(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer())
    quant.calibrate(encoder, [torch.randn(1, 80, 60)])
    sizes = {}
    for bit_width in ("fp", "w8a8", "w4a8"):
        sizes[bit_width] = export.to_onnx(encoder, tmp_path / f"{bit_width}.onnx", bit_width).stat().st_size
    assert sizes["w8a8"] <= 0.27 * sizes["fp"]
    assert sizes["w4a8"] <= 0.16 * sizes["fp"]
    for bit_width in ("w8a8", "w4a8"):
        assert export.integer_operators(tmp_path / f"{bit_width}.onnx")["MatMulIntegerToFloat"] == 4 * 6


@pytest.mark.parametrize("bit_width", ["fp", "w8a8", "w4a8"])
def test_timm_resnet_exports_with_a_dynamic_batch(tmp_path, bit_width):
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("resnet10t", in_channels=1, model_arguments={})).eval()
    quant.calibrate(encoder, [torch.randn(4, 1, 224, 224)])
    path = export.to_onnx(encoder, tmp_path / "encoder.onnx", bit_width)
    result = export.verify(path, encoder, bit_width)
    assert result.passed, result
    assert result.clips == 5


def test_metadata_says_what_the_file_is(speech, files):
    metadata = {prop.key: prop.value for prop in onnx.load(files["w4a8"]).metadata_props}
    assert metadata["bit_width"] == "w4a8"
    assert metadata["frame_rate_hz"] == "25.0"
    assert metadata["n_mels"] == "80"
    assert json.loads(metadata["arguments"]) == speech.arguments


def test_encoder_is_left_as_it_was(speech, files):
    assert len(quant.quant_layers(speech)) == 14
    assert speech.conv1.mode.bit_width == quant.FULL_PRECISION


def test_bad_input_is_named_and_nothing_is_written(speech, files, tmp_path):
    before = files["w8a8"].read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        export.to_onnx(speech, files["w8a8"], "w8a8")
    assert files["w8a8"].read_bytes() == before
    target = tmp_path / "x.onnx"
    with pytest.raises(ValueError, match="not prepared"):
        export.to_onnx(SpeechTransformer(width=32, depth=1), target, "w8a8")
    fresh = quant.prepare(SpeechTransformer(width=32, depth=1))
    with pytest.raises(quant.NotCalibratedError, match="'conv2' has no activation range"):
        export.to_onnx(fresh, target, "w8a8")
    with torch.no_grad():
        fresh.conv2.weight[0] = torch.nan
    with pytest.raises(ValueError, match="'conv2.weight' is NaN"):
        export.to_onnx(fresh, target)
    with pytest.raises(ValueError, match="unknown bit-width 'int8'"):
        export.to_onnx(speech, target, "int8")
    assert list(tmp_path.iterdir()) == []
