import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from written import to_file

import export
import quant
from encoders import LogMel, SpeechTransformer, WhisperLogMel
from export.graph.front_end import COSINES, FILTERS, SINES, ExportedFrontEnd, ProductPowerSpectrum, shrink_tables
from export.graph.signature import signature
from export.graph.trace import trace
from export.runtime.session import open_session

SECOND = torch.arange(16_000) / 16_000
NOISE = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
CLIPS = {
    "loud noise": 0.3 * NOISE,
    "quiet noise": 1e-4 * NOISE,
    "16 bits, one step": (NOISE * 0.6).round() / 32768,
    "chirp in noise": 0.3 * torch.sin(2 * math.pi * (200 + 900 * SECOND) * SECOND) + 0.02 * NOISE,
    "silence": torch.zeros(16_000),
    "constant": torch.full((16_000,), 0.5),
    "click": torch.zeros(16_000).index_fill(0, torch.tensor([8_000]), 1.0),
}
TONES = {
    "full-scale tone": torch.sin(2 * math.pi * 440 * SECOND),
    "clean chirp": 0.3 * torch.sin(2 * math.pi * (200 + 900 * SECOND) * SECOND),
}


@pytest.fixture(scope="module", params=[80, 128])
def front_end(request):
    """The front end of a file, without an encoder, and what it was made from."""
    torch.manual_seed(0)
    log_mel = LogMel(request.param)
    proto = graph_of(log_mel)
    return log_mel, onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def graph_of(log_mel: LogMel, shrink: bool = True) -> onnx.ModelProto:
    model = torch.nn.Module()
    model.front_end = ExportedFrontEnd(log_mel)
    model.forward = lambda *inputs: model.front_end(*inputs)
    proto = trace(model, signature("waveform"), (torch.randn(2, 8_000), torch.tensor([8_000, 6_000])))
    if shrink:
        shrink_tables(proto)
    return proto


def in_double(log_mel: LogMel, clip: torch.Tensor) -> np.ndarray:
    padded = torch.nn.functional.pad(clip.double(), (200, 200))
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400).double(), center=False, return_complex=True)
    mel = log_mel.filters.double() @ spectrum[..., :-1].abs().square()
    return ((mel.clamp_min(1e-10).log10() + 4) / 4).numpy()


def run(session, clip: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return session.run(None, {"waveform": clip.unsqueeze(0).numpy(), "lengths": np.array([len(clip)])})


@pytest.mark.parametrize("name", CLIPS)
def test_log_mel_of_a_file_is_torchs(front_end, name):
    log_mel, session = front_end
    expected, lengths = log_mel(CLIPS[name].unsqueeze(0))
    found, found_lengths = run(session, CLIPS[name])
    assert np.array_equal(found_lengths, lengths)
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 5e-5


@pytest.mark.parametrize("name", TONES)
def test_bands_far_below_a_loud_tone_are_as_exact_as_float32_allows(front_end, name):
    log_mel, session = front_end
    exact = in_double(log_mel, TONES[name])
    torchs = np.abs(log_mel(TONES[name].unsqueeze(0))[0][0].numpy() - exact).max()
    assert torchs > 1e-4  # rounding shows: these bands are near the floor
    assert np.abs(run(session, TONES[name])[0][0] - exact).max() < 8 * torchs


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 561, 719, 720, 4_001])
def test_number_of_frames_is_torchs_at_every_length(front_end, samples):
    log_mel, session = front_end
    clips = NOISE[: 2 * samples].view(2, samples).clone()
    lengths = torch.tensor([samples, samples - 100])
    clips[1, samples - 100 :] = 0
    expected, frames = log_mel(clips, lengths)
    found = session.run(None, {"waveform": clips.numpy(), "lengths": lengths.numpy()})
    assert found[0].shape == expected.shape
    assert np.array_equal(found[1], frames)
    assert np.abs(found[0] - expected.numpy()).max() < 5e-5


def test_power_spectrum_is_that_of_a_double_precision_transform():
    clip = 0.3 * NOISE
    window = torch.hann_window(400).double()
    spectrum = torch.stft(clip.double(), 400, 160, window=window, center=False, return_complex=True)
    expected = spectrum[..., :-1].abs().square()
    found = ProductPowerSpectrum()(clip.unsqueeze(0))[0]
    assert ((found - expected).abs() / expected.mean()).max() < 1e-5


def test_whatever_stands_behind_a_clip_is_not_heard(front_end):
    _, session = front_end
    clip = NOISE[:6_000]
    padded = pad_sequence([clip, NOISE[6_000:15_000]], batch_first=True)
    padded[0, 6_000:] = torch.nan
    alone = session.run(None, {"waveform": clip.unsqueeze(0).numpy(), "lengths": np.array([6_000])})[0]
    together = session.run(None, {"waveform": padded.numpy(), "lengths": np.array([6_000, 9_000])})[0]
    assert np.isfinite(together).all()
    assert np.abs(together[0, :, : alone.shape[2]] - alone[0]).max() < 1e-5


def test_tables_take_no_room_and_are_the_same_bit_for_bit():
    log_mel = LogMel(80)
    whole, small = graph_of(log_mel, shrink=False), graph_of(log_mel)
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    small.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in (COSINES, SINES, FILTERS))
    session = onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"waveform": np.zeros((1, 800), np.float32), "lengths": np.array([800])}
    for name, found in zip((COSINES, SINES, FILTERS), session.run([COSINES, SINES, FILTERS], feeds), strict=True):
        assert np.array_equal(found, expected[name])
    assert small.ByteSize() < 0.1 * whole.ByteSize()


@pytest.mark.parametrize(("bit_width", "log_mel"), [("w8a8", "causal"), ("w4a8", "whisper")])
def test_a_file_from_samples_gives_torchs_features(tmp_path, bit_width, log_mel):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=64, depth=1, heads=2, log_mel=log_mel)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width, input="waveform", check=False)
    result = export.verify(path, encoder)
    assert result.passed
    assert (result.bit_width, result.inputs) == (bit_width, "shipped speech")
    session = open_session(path)
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "waveform": ["batch", "samples"],
        "lengths": ["batch"],
    }


def test_whisper_front_end_keeps_its_two_frames_of_silence():
    assert WhisperLogMel(80).lookahead == 2
    session = onnxruntime.InferenceSession(
        graph_of(WhisperLogMel(80)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected, frames = WhisperLogMel(80)(NOISE[:4_321].unsqueeze(0))
    found, found_frames = run(session, NOISE[:4_321])
    assert np.abs(found - expected.numpy()).max() < 5e-5
    assert np.array_equal(found_frames, frames)
