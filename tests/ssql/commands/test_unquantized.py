"""The note on bit-widths that an encoder was not quantized for, through the commands that take bit-widths."""

import pytest
import soundfile
import torch

import quant
from encoders import SpeechTransformer, load_encoder, save_encoder

NOTE = "was quantized for w8a8 and w4a8, and not for w3a8: there each weight takes its nearest integer"


@pytest.fixture(scope="module")
def quantized(saved, tmp_path_factory):
    """Integers at w4a8, and biases alone at w8a8, as `ssql quantize` leaves them by default."""
    folder = tmp_path_factory.mktemp("quantized")
    torch.manual_seed(0)
    inputs = [torch.randn(2, 80, 60)]
    encoder = quant.quantize(SpeechTransformer(width=16, depth=1, heads=2), inputs, "w8a8", "w4a8")
    save_encoder(encoder.eval(), folder / "encoder")
    save_encoder(quant.quantize(SpeechTransformer(width=16, depth=1, heads=2), inputs, "w8a8").eval(), folder / "w8")
    trained = load_encoder(saved)
    quant.correct_bias(trained, "w4a8", inputs)
    save_encoder(trained, folder / "trained")
    soundfile.write(folder / "talk.wav", 0.1 * torch.randn(16_000).numpy(), 16_000)
    return folder


def notes(caplog):
    return [" ".join(record.getMessage().split()) for record in caplog.records if "note: " in record.getMessage()]


@pytest.mark.parametrize(
    ("encoder", "bit_width", "note"),
    [
        ("encoder", "w3a8", NOTE),
        ("encoder", "w8a8", None),
        ("encoder", "w4a8", None),
        ("encoder", "fp", None),
        ("w8", "w4a8", "was quantized for w8a8, and not for w4a8"),
        ("trained", "w3a8", None),  # no integers were chosen at any: pretrained encoders are fit for all
    ],
)
def test_features(encoder, bit_width, note, quantized, ssql, caplog, tmp_path):
    words = ["--encoder", quantized / encoder, "--output", tmp_path / "out", "--bit_width", bit_width]
    ssql("features", quantized / "talk.wav", *words)
    found = notes(caplog)
    assert len(found) == (note is not None)
    if note is not None:
        assert note in found[0]
        assert found[0].endswith(f"ssql quantize --bit_width '[{bit_width}]' chooses them on data")


def test_evaluate_and_export(quantized, ssql, caplog, tmp_path, monkeypatch, speak_once):
    data = ["--data", "SpokenWords", "--data.languages", "[de]", "--data.train_size", "12", "--data.test_size", "4"]
    words = [
        "--encoders.a",
        quantized / "encoder",
        *data,
        "--bit_widths",
        "[fp, w4a8, w3a8, w2a8]",
        "--tasks",
        "[word]",
    ]
    ssql("evaluate", *words, "--output", tmp_path)
    assert "a was quantized for w8a8 and w4a8, and not for w3a8 and w2a8" in notes(caplog)[0]
    caplog.clear()
    newly = ["--quantizers", "{mse: {observer: mse}}", "--calibration_batches", "1"]
    ssql("evaluate", *words, "--output", tmp_path, "--overwrite", "true", *newly)
    assert notes(caplog) == []  # new ranges drop what was chosen
    words = ["--encoder", quantized / "encoder", "--bit_width", "w3a8", "--bench", "false"]
    ssql("export", *words, "--output", tmp_path / "files")
    assert NOTE in notes(caplog)[0]
    # Nothing was measured: no file of latencies, and the card says what would measure it.
    assert not (tmp_path / "files" / "latency.json").exists()
    card = (tmp_path / "files" / "README.md").read_text()
    assert "Accuracy was not measured: `ssql evaluate --encoders.file encoder-w3a8.onnx ...`" in card
    assert "Latency was not measured: `ssql bench encoder-w3a8.onnx`" in card
    assert "ms for" not in card
