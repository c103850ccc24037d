import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from written import to_file

import export
import quant
from encoders import SpeechTransformer, VisionEncoder
from export.graph.packing import pack_weights
from export.runtime.session import open_session

BIT_WIDTHS = ["fp", "w8a8", "w4a8", "w2a8"]


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
    return {b: to_file(speech, folder / f"{b}.onnx", b, check=False) for b in BIT_WIDTHS}


def session(path) -> onnxruntime.InferenceSession:
    return open_session(path)


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


def unpack_two_bits(tensor: onnx.TensorProto) -> np.ndarray:
    packed = onnx.numpy_helper.to_array(tensor).astype(np.int64)
    return np.stack([packed >> place & 3 for place in (0, 2, 4, 6)], axis=1).flatten() - 2


@pytest.mark.parametrize(("bit_width", "bits"), [("w8a8", 8), ("w4a8", 4), ("w2a8", 2)])
def test_integers_in_the_file_equal_quants(speech, files, bit_width, bits):
    stored = {tensor.name: tensor for tensor in onnx.load(files[bit_width]).graph.initializer}
    checked = 0
    for name, layer in list(quant.quant_layers(speech).items())[1:]:
        integers, scale = quant.quantize_weight(layer.weight, bits)
        # (out, in) to (in, out); a kernel (out, in, 3) to (3 in, out).
        expected = integers.numpy().T if integers.dim() == 2 else integers.numpy().transpose(2, 1, 0).reshape(-1, 64)
        key = f"encoder.{name}.weight_integers"
        if bits == 4:
            assert stored[key + ".int4"].data_type == TensorProto.INT4
            found = unpack_int4(stored[key + ".int4"])
        elif bits == 2:
            assert stored[key + ".field_0"].dims == [integers.numel() // 4]
            found = unpack_two_bits(stored[key + ".field_0"]).reshape(expected.shape)
        else:
            found = onnx.numpy_helper.to_array(stored[key])
        assert np.array_equal(found, expected)
        found_scale = onnx.numpy_helper.to_array(stored[f"encoder.{name}.weight_scale"])
        assert np.array_equal(found_scale, scale.flatten().numpy())
        checked += 1
    assert checked == 13


def test_padding_is_invisible_in_the_file(speech, files):
    run = session(files["w4a8"])
    torch.manual_seed(0)
    mel, _ = speech.front_end(torch.randn(1, 8_000))
    alone = run.run(None, {"log_mel": mel.numpy(), "lengths": np.array([50])})[0]
    padded = np.pad(mel.numpy(), ((0, 0), (0, 0), (0, 70)), constant_values=3)
    batch = np.concatenate([padded, np.random.default_rng(0).standard_normal(padded.shape, np.float32)])
    together = run.run(None, {"log_mel": batch, "lengths": np.array([50, 120])})[0]
    assert np.allclose(together[0, : alone.shape[1]], alone[0], atol=1e-5)


def test_files_are_as_small_as_their_bits(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=384, depth=1, heads=6))
    quant.calibrate(encoder, [torch.randn(1, 80, 60)])
    full, *others = (
        to_file(encoder, tmp_path / f"{bit_width}.onnx", bit_width, check=False).stat().st_size
        for bit_width in ("fp", "w8a8", "w4a8", "w2a8")
    )
    assert all(size <= part * full for size, part in zip(others, (0.26, 0.14, 0.08), strict=True))


@pytest.mark.parametrize("bit_width", BIT_WIDTHS[1:])
def test_all_layers_but_the_first_multiply_integers(files, bit_width):
    operators = export.integer_operators(files[bit_width])
    assert operators["MatMulIntegerToFloat"] == 2 * 6 + 1  # and conv2
    assert operators["Conv"] == 1  # conv1, whose input the policy leaves in float


@pytest.mark.parametrize("bit_width", ["w8a8", "w4a4"])
def test_timm_resnet_exports_with_a_dynamic_batch(tmp_path, bit_width):
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("test_resnet", in_channels=1))
    quant.calibrate(encoder, [torch.randn(4, 1, 64, 64)])
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width, image_size=64, check=False)
    result = export.verify(path, encoder, bit_width)
    assert result.passed, result
    assert result.clips == 5
    assert session(path).get_inputs()[0].shape == ["batch", 1, 64, 64]


def test_timm_vit_takes_its_own_image_size_and_multiplies_integers(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("test_vit"))
    quant.calibrate(encoder, [torch.randn(2, 3, 160, 160)])
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8")
    assert session(path).get_inputs()[0].shape == ["batch", 3, 160, 160]
    assert export.integer_operators(path)["MatMulIntegerToFloat"] == 6 * 4


def test_an_encoder_that_is_not_prepared_exports_in_full_precision(tmp_path):
    encoder = SpeechTransformer(width=32, depth=1, heads=2, pooling=2, adaptor_dim=48).train()
    path = to_file(encoder, tmp_path / "encoder.onnx")
    assert "IsNaN" not in export.integer_operators(path)
    assert encoder.training


def test_a_file_that_fails_verification_takes_no_name(speech, tmp_path, monkeypatch):
    target = tmp_path / "encoder.onnx"
    to_file(speech, target, "w4a8", check=False)
    before = target.read_bytes()

    def one_wrong_integer(proto, layers, weights):
        key = "encoder.blocks.1.attn.out.weight_integers"
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == key)
        integers = onnx.numpy_helper.to_array(tensor).copy()
        integers[3, 3] ^= 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(integers, key))
        pack_weights(proto, layers, weights)

    monkeypatch.setattr("export.write.pack_weights", one_wrong_integer)
    with pytest.raises(export.VerificationError, match=r"was not written, .*difference in layer blocks\.1\.attn\.out"):
        to_file(speech, target, "w4a8", overwrite=True)
    assert target.read_bytes() == before
    failed = {path.name for path in tmp_path.iterdir()} - {target.name}
    assert failed == {"encoder.failed.onnx", "encoder.failed.verification.json"}
    report = json.loads((tmp_path / "encoder.failed.verification.json").read_text())
    assert (report["passed"], report["first_difference"]) == (False, "blocks.1.attn.out")


def test_metadata_says_what_the_file_is(speech, files):
    metadata = {prop.key: prop.value for prop in onnx.load(files["w4a8"]).metadata_props}
    assert metadata["bit_width"] == "w4a8"
    assert metadata["frame_rate_hz"] == "25.0"
    assert metadata["n_mels"] == "80"
    assert json.loads(metadata["arguments"]) == speech.arguments


def test_encoder_is_left_as_it_was(speech, files):
    assert len(quant.quant_layers(speech)) == 14
    assert speech.conv1.mode.run.bit_width == quant.FULL_PRECISION


def test_bad_input_is_named_and_nothing_is_written(speech, files, tmp_path):
    before = files["w8a8"].read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        to_file(speech, files["w8a8"], "w8a8")
    assert files["w8a8"].read_bytes() == before
    target = tmp_path / "x.onnx"
    with pytest.raises(ValueError, match="not prepared"):
        to_file(SpeechTransformer(width=32, depth=1), target, "w8a8")
    fresh = quant.prepare(SpeechTransformer(width=32, depth=1))
    with pytest.raises(quant.NotCalibratedError, match="'conv2' has no activation range"):
        to_file(fresh, target, "w8a8")
    with torch.no_grad():
        fresh.conv2.weight[0] = torch.nan
    with pytest.raises(ValueError, match="'conv2.weight' is NaN"):
        to_file(fresh, target)
    with pytest.raises(ValueError, match="unknown bit-width 'int8'"):
        to_file(speech, target, "int8")
    assert list(tmp_path.iterdir()) == []
