"""Files in OpenVINO: the features of ONNX Runtime, the same sentences, and nothing sent or written unasked."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
import torch
from written import to_file

import export
import quant
from encoders import Head, SpeechTransformer, VisionEncoder
from export.runtime.session import open_session
from export.runtime.start import start

SPEECH = {
    "log_mel": np.random.default_rng(0).standard_normal((3, 80, 100), dtype=np.float32),
    "lengths": np.array([100, 50, 0]),
}
SPEECH["log_mel"][1, :, 50:] = SPEECH["log_mel"][2] = 0
IMAGES = {"images": np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)}
SIZES = {"width": 32, "depth": 1, "heads": 2}
SECOND = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)


@pytest.fixture(scope="module")
def files(encoder, tmp_path_factory):
    """A path for each kind of input and bit-width."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    vision = quant.prepare(VisionEncoder("test_resnet")).eval()
    quant.calibrate(vision, [torch.randn(2, 3, 64, 64)])
    paths = {}
    for bits in ("fp", "w8a8", "w4a8", "w4a32"):
        paths["speech", bits] = to_file(encoder, folder / f"speech-{bits}.onnx", bits, check=False)
    for bits in ("w8a8", "w4a8"):
        paths["vision", bits] = to_file(vision, folder / f"vision-{bits}.onnx", bits, check=False, image_size=(64, 64))
    head = Head("classification", 32, ["yes", "no"], label="answer").eval()
    paths["head"] = to_file(encoder, folder / "head.onnx", "w8a8", input="waveform", head=head, check=False)
    return paths


def error_over_variance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).mean() / expected.var(axis=tuple(range(expected.ndim - 1))).mean())


@pytest.mark.parametrize("bits", ["fp", "w8a8", "w4a8", "w4a32"])
def test_features_of_speech_are_those_of_onnx_runtime(files, bits):
    path = files["speech", bits]
    expected, lengths = open_session(path).run(None, SPEECH)
    for runtime, limit in (("openvino_f32", 1e-5 if bits.endswith("a8") else 1e-9), ("openvino", 2e-3)):
        features, feature_lengths = start(path, runtime, 1).run(None, SPEECH)
        assert features.dtype == np.float32
        assert feature_lengths.tolist() == lengths.tolist() == [50, 25, 0]
        assert error_over_variance(features, expected) < limit
        assert not features[1, 25:].any()
        assert not features[2].any()
    # What is compared is the bit-width's own: others are farther away.
    if bits != "fp":
        full, _ = open_session(files["speech", "fp"]).run(None, SPEECH)
        assert error_over_variance(full, expected) > 2e-5


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_features_of_images_are_those_of_onnx_runtime(files, bits):
    (expected,) = open_session(files["vision", bits]).run(None, IMAGES)
    for runtime, limit in (("openvino_f32", 1e-5), ("openvino", 0.05)):  # two images of noise hardly vary
        (features,) = start(files["vision", bits], runtime, 1).run(["features"], IMAGES)
        assert features.shape == expected.shape
        assert error_over_variance(features, expected) < limit


def test_the_precision_is_what_openvino_takes_here(files):
    own = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    assert start(files["speech", "fp"], "openvino").precision == own
    assert start(files["speech", "fp"], "openvino_f32").precision == "f32"
    assert start(files["speech", "fp"]).precision == "f32"


def test_a_fixed_batch_has_the_same_features_and_takes_no_other(files):
    one = {name: value[:1] for name, value in SPEECH.items()}
    any_batch, fixed = (start(files["speech", "w8a8"], "openvino_f32", 1, batch=batch) for batch in (None, 1))
    assert [spec.shape for spec in any_batch.get_inputs()] == [["any", 80, "any"], ["any"]]
    assert [spec.shape for spec in fixed.get_inputs()] == [[1, 80, "any"], [1]]
    assert error_over_variance(fixed.run(["features"], one)[0], any_batch.run(["features"], SPEECH)[0][:1]) < 1e-5
    with pytest.raises(ValueError, match=r"takes log_mel of shape \(1, 80, any\), float32; got \(3, 80, 100\)"):
        fixed.run(None, SPEECH)


def test_it_says_of_itself_what_it_says_in_onnx_runtime(files):
    for path in files.values():
        here, there = (start(path, runtime) for runtime in ("openvino", "onnxruntime"))
        assert here.get_modelmeta().custom_metadata_map == there.get_modelmeta().custom_metadata_map
        for found, expected in ((here.get_inputs(), there.get_inputs()), (here.get_outputs(), there.get_outputs())):
            assert [(spec.name, spec.type) for spec in found] == [(spec.name, spec.type) for spec in expected]


def test_a_head_answers_as_in_onnx_runtime(files):
    in_openvino, in_onnx = (export.OnnxEncoder(files["head"], runtime=r) for r in ("openvino_f32", "onnxruntime"))
    assert in_openvino.head == in_onnx.head
    found, expected = (encoder.outputs(SECOND, 16_000) for encoder in (in_openvino, in_onnx))
    assert found.keys() == expected.keys() == {"features", "feature_lengths", "logits"}
    assert np.allclose(found["logits"], expected["logits"], atol=1e-2 * np.abs(expected["logits"]).max())
    assert error_over_variance(found["features"], expected["features"]) < 1e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_inputs_that_a_file_does_not_take_are_named(files, runtime):
    session = start(files["speech", "w8a8"], runtime)
    with pytest.raises(ValueError, match=r"speech-w8a8\.onnx takes the inputs log_mel, lengths, got log_mel"):
        session.run(None, {"log_mel": SPEECH["log_mel"]})
    with pytest.raises(ValueError, match=r"takes log_mel of shape \(\w+, 80, \w+\), float32; got .*, float64"):
        session.run(None, SPEECH | {"log_mel": SPEECH["log_mel"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"takes log_mel of shape .*; got \(3, 40, 100\), float32"):
        session.run(None, SPEECH | {"log_mel": SPEECH["log_mel"][:, :40]})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", ["log_mel", "waveform"])
def test_a_clip_that_is_too_long_is_refused(tmp_path, form, runtime, threads):
    path = to_file(SpeechTransformer(**SIZES, positions=60).eval(), tmp_path / "x.onnx", input=form, check=False)

    def feeds(size: int) -> dict[str, np.ndarray]:
        shape = (1, size) if form == "waveform" else (1, 80, size)
        return {form: np.zeros(shape, np.float32), "lengths": np.array([size])}

    session = start(path, runtime, threads)
    size = 32_000 if form == "waveform" else 200
    session.run(None, feeds(size // 2))  # whose features must not come again
    with pytest.raises(ValueError, match=r"x\.onnx takes 1\.2 s at most, got a clip of 2\.00 s: cut it"):
        session.run(None, feeds(size))


def test_an_encoder_of_a_file_refuses_a_clip_that_is_too_long(tmp_path):
    path = to_file(SpeechTransformer(**SIZES, positions=60).eval(), tmp_path / "x.onnx", input="waveform", check=False)
    with pytest.raises(ValueError, match=r"x\.onnx does not take a clip of 2\.00 s: 1\.2 s at most, cut it into"):
        export.OnnxEncoder(path, runtime="openvino")(np.zeros(32_000), 16_000)


def test_signals_are_heard_when_sessions_have_gone(files):
    program = """if True:
        import os, signal, sys
        from export.runtime.start import start

        first, second = (start(sys.argv[1], "openvino") for _ in range(2))
        del first
        del second
        signal.signal(signal.SIGUSR1, lambda *_: sys.stdout.write("heard"))
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    ran = subprocess.run([sys.executable, "-c", program, files["speech", "fp"]], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "heard"), ran.stderr


def test_a_file_that_is_none_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx does not exist"):
        start(tmp_path / "nowhere.onnx", "openvino")
    cut, text = tmp_path / "cut.onnx", tmp_path / "text.onnx"
    cut.write_bytes(files["speech", "w8a8"].read_bytes()[:5_000])
    text.write_text("no graph")
    for path in (cut, text):
        with pytest.raises(
            export.VerificationError, match=rf"{path.name} does not start in OpenVINO 20\S+, which takes"
        ):
            start(path, "openvino")
    with pytest.raises(ValueError, match=r"text\.onnx does not start in OpenVINO"):
        export.OnnxEncoder(text, runtime="openvino")
    with pytest.raises(ValueError, match="unknown runtime 'tensorrt': take one of onnxruntime, openvino, openvino_f32"):
        export.OnnxEncoder(files["head"], runtime="tensorrt")


def test_only_a_cache_that_was_asked_for_is_written(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "compiled"
    plain = export.OnnxEncoder(files["head"], runtime="openvino")
    assert list(tmp_path.iterdir()) == []
    first = export.OnnxEncoder(files["head"], runtime="openvino", cache=cache)
    written = sorted(path.name for path in cache.iterdir())
    second = export.OnnxEncoder(files["head"], runtime="openvino", cache=cache)
    assert written
    assert sorted(path.name for path in cache.iterdir()) == written
    assert second.precision == first.precision == plain.precision
    assert np.array_equal(first(SECOND, 16_000), second(SECOND, 16_000))
    assert np.array_equal(plain(SECOND, 16_000), second(SECOND, 16_000))
    with pytest.raises(ValueError, match="is for OpenVINO: ONNX Runtime keeps nothing of what it compiles"):
        export.OnnxEncoder(files["head"], cache=cache)


def test_threads_that_share_an_encoder_get_their_own_features(files):
    encoder = export.OnnxEncoder(files["head"], runtime="openvino", threads=1)
    clips = [SECOND[: 4_000 * (1 + place % 4)] for place in range(16)]
    expected = [encoder(clip, 16_000) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda clip: encoder(clip, 16_000), clips))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_openvino_sends_nothing_and_writes_nothing_into_the_home_folder(tmp_path):
    program = """
import sys
import export.runtime.openvino_session
assert "openvino_telemetry" not in sys.modules, "loaded"
import openvino
openvino.convert_model  # all else of OpenVINO is there
import openvino_telemetry  # and so is this, for whoever asks for it
"""
    # As on a user's machine: in CI it would send nothing by itself.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_file_that_fills_the_clips_it_is_given_runs(tmp_path):
    """OpenVINO 2026.4 crashed on windows of log-mels that the file makes: in a process of its own, to live on."""
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=1, heads=2, positions=60, log_mel="whisper_filled").eval()
    mels = encoder.front_end(0.1 * torch.randn(1, 16_000))
    quant.calibrate(quant.prepare(encoder, quant.Policy(activation_range="static")), [mels], lambda it: encoder(*it))
    path = to_file(encoder, tmp_path / "filled.onnx", "w8a8", input="waveform", check=False)
    program = (
        "import numpy as np; from export.runtime.start import start; "
        f"session = start({str(path)!r}, 'openvino', 1); "
        "feeds = {'waveform': np.zeros((1, 16_000), np.float32), 'lengths': np.array([16_000])}; "
        "print(session.run(None, feeds)[0].shape)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "(1, 60, 32)\n")
