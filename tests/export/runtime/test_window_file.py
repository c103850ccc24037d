import numpy as np
import onnx
import pytest
import torch
from written import to_file, to_stream_file

import export
import quant
from encoders import SpeechTransformer, StreamingTransformer, VisionEncoder, encode_windows, window_encoder
from export import FileEncoder, VerificationError, file_window_encoder
from export.card import card_text

SAMPLES = (np.random.default_rng(0).standard_normal(90_123) * 0.1).astype(np.float32)
SIZES = {"width": 32, "depth": 1, "heads": 2}


def joined(pieces) -> np.ndarray:
    return np.concatenate([piece.features for piece in pieces])


@pytest.mark.parametrize(("form", "log_mel"), [("log_mel", "whisper"), ("waveform", "causal")])
def test_windows_through_a_file_are_those_through_torch(tmp_path, form, log_mel):
    torch.manual_seed(0)
    encoder = SpeechTransformer(**SIZES, pooling=2, positions=1500, log_mel=log_mel).eval()
    quant.prepare(encoder)
    quant.calibrate(encoder, [encoder.front_end(torch.from_numpy(SAMPLES)[None])], lambda batch: encoder(*batch))
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8", input=form, check=False)
    in_file, about = file_window_encoder(path)
    in_torch = window_encoder(encoder)
    assert (about["bit_width"], in_file.frame_rate, in_file.feature_dim) == ("w8a8", 25, 32)
    found = joined(encode_windows(in_file, [SAMPLES], window=2.5, overlap=1, batch_size=2))
    with quant.at(encoder, "w8a8"):
        expected = joined(encode_windows(in_torch, [SAMPLES], window=2.5, overlap=1))
    assert found.shape == expected.shape
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999

    # The longest window runs: Whisper's two frames of lookahead need no positions.
    assert in_file.longest == in_torch.longest == 480_000
    minute = np.tile(SAMPLES, 11)
    mels = len(minute) // 160 if log_mel == "causal" else -(-len(minute) // 160)
    assert len(joined(encode_windows(in_file, [minute]))) == (mels + 1) // 2 // 2
    with pytest.raises(ValueError, match="window of 31 s is longer than the encoder takes: at most 30 s"):
        encode_windows(in_file, [minute], window=31)


@pytest.mark.parametrize(
    ("form", "log_mel"), [("waveform", "whisper"), ("waveform", "whisper_filled"), ("log_mel", "whisper_filled")]
)
def test_a_file_takes_clips_of_all_positions(tmp_path, form, log_mel):
    """Verified on clips as long as the encoder takes them, and its card says how long that is."""
    encoder = SpeechTransformer(**SIZES, positions=60, log_mel=log_mel).eval()
    path = to_file(encoder, tmp_path / "encoder.onnx", input=form)
    file, clip = FileEncoder(path), torch.from_numpy(SAMPLES[None, :19_200])
    with torch.no_grad():
        features, lengths = encoder(*encoder.front_end(clip))
        short, _ = encoder(*encoder.front_end(clip[:, :4_000]))
    assert file.longest == 19_200
    assert lengths.tolist() == [60]
    assert torch.allclose(file(clip)[0], features, atol=1e-4)
    assert torch.allclose(file(clip[:, :4_000])[0], short, atol=1e-4)
    with pytest.raises(ValueError, match=r"of 1\.2\d s"):
        file(torch.zeros(1, 19_600))
    card = card_text(export.describe([path], encoder))
    filled = {
        "waveform": "A clip has 1 to 19,200 samples (1.2 s), and the file fills it with silence to 19,200",
        "log_mel": "Log-mels have exactly 120 frames, which is what `lengths` says",
    }
    assert ("No clip may be longer than 19,200 samples (1.2 s)" if log_mel == "whisper" else filled[form]) in card
    if form == "log_mel":
        with pytest.raises(ValueError, match=r"takes log_mel of shape \(batch, 80, 120\), float32; got \(1, 80, 60\)"):
            file.session.run(None, {"log_mel": np.zeros((1, 80, 60), np.float32), "lengths": np.array([60])})
        assert export.measure_files([path], [0.5], [1], 1)[0]["latency_ms"] > 0


@pytest.mark.parametrize("form", ["waveform", "log_mel"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino_f32"])
def test_a_file_fills_clips_by_a_margin(tmp_path, form, runtime):
    """As torch does, for a clip alone, near the end of the positions, and beside a longer one; its card says so."""
    if runtime == "openvino_f32":
        pytest.importorskip("openvino")
    encoder = SpeechTransformer(**SIZES, positions=60, log_mel="whisper_filled", margin=0.2).eval()
    path = to_file(encoder, tmp_path / "encoder.onnx", input=form, check=False)
    file, clips = FileEncoder(path, runtime=runtime), torch.from_numpy(SAMPLES[None, :19_200])
    for samples, frames in ((4_000, 23), (17_000, 60), (19_200, 60)):
        found, counted = file(clips[:, :samples])
        assert counted.tolist() == [frames]
        with torch.no_grad():
            expected, _ = encoder(*encoder.front_end(clips[:, :samples]))
        assert torch.allclose(found, expected, atol=1e-4)
    short, _ = file(clips[:, :4_000])
    both = torch.cat([torch.nn.functional.pad(clips[:, :4_000], (0, 4_000)), clips[:, :8_000]])
    assert torch.allclose(file(both, torch.tensor([4_000, 8_000]))[0][:1, :23], short, atol=1e-4)
    assert len(joined(encode_windows(file_window_encoder(path)[0], [SAMPLES[:4_000]], overlap=0.5))) == 13
    says = "The file follows each clip by 0.2 s" if form == "waveform" else "taken, each clip is followed by 0.2 s"
    assert says in card_text(export.describe([path], encoder))


def test_files_without_whole_clips_are_refused(tmp_path):
    stream = to_stream_file(StreamingTransformer(**SIZES).eval(), tmp_path / "stream.onnx", check=False)
    with pytest.raises(VerificationError, match=r"stream\.onnx takes stream: give a file that ssql export wrote"):
        file_window_encoder(stream)
    images = to_file(VisionEncoder("test_resnet", in_channels=1).eval(), tmp_path / "images.onnx", check=False)
    with pytest.raises(VerificationError, match=r"images\.onnx takes images"):
        file_window_encoder(images)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx does not exist"):
        file_window_encoder(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            (key, text)
            for key in ("n_mels", "frame_rate_hz", "feature_dim", "arguments")
            for text in (None, "-1", "[1]")
        ],
        ("frame_rate_hz", "nan"),
        ("bit_width", None),
    ],
)
def test_a_file_that_says_of_itself_what_cannot_be_is_refused(tmp_path, key, value):
    tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [tensor], [out]), ir_version=10)
    about = {"input": "log_mel", "n_mels": "80", "frame_rate_hz": "50", "feature_dim": "8", "bit_width": "fp"}
    about = about | {"arguments": "{}"} | {key: value}
    onnx.helper.set_model_props(model, {name: text for name, text in about.items() if text is not None})
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(VerificationError, match=r"a\.onnx says of itself what no file of ssql export says"):
        file_window_encoder(tmp_path / "a.onnx")


def test_chunks_of_a_streaming_encoder_stay_where_they_are(tmp_path):
    torch.manual_seed(0)
    encoder = StreamingTransformer(**SIZES, chunk=8, left_chunks=2).eval()
    in_file, _ = file_window_encoder(to_file(encoder, tmp_path / "encoder.onnx", check=False))
    assert in_file.step == 8 * 320
    with torch.no_grad():
        expected = encoder(*encoder.front_end(torch.from_numpy(SAMPLES)[None]))[0][0].numpy()
    found = joined(encode_windows(in_file, [SAMPLES], window=2, overlap=1.2))
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())
