"""`ssql evaluate --reader`: a frozen reader's error rates, through the command line."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from frozen_reader import SignReader
from safetensors.torch import save_file
from written import to_file

import export
import quant
from encoders import SpeechTransformer, load_encoder, save_encoder
from ssql import cli
from ssql.data import AudioFolder
from ssql.evaluation import reading
from ssql.evaluation.error_rates import edits
from ssql.evaluation.whisper_decoder import WhisperDecoder, text_of

BITS = ("fp", "w3a8", "w2a4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten clips of noise with texts, a calibrated encoder, and its file at w2a4 with a card."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    encoder = quant.prepare(
        SpeechTransformer(width=32, depth=1, heads=2, positions=60, log_mel="whisper_filled")
    ).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    save_encoder(encoder, folder / "encoder")
    noise = np.random.default_rng(0)
    (folder / "audio").mkdir()
    for number in range(10):
        soundfile.write(folder / "audio" / f"{number}.wav", 0.1 * noise.standard_normal(9000), 16_000)
    said = SignReader().read(*features(encoder, data(folder, texts=False), "fp"))
    # As full precision reads them, but for the last: one word too many, and one that nobody read.
    said[-1] = "maybe " + said[-1].partition(" ")[2]
    (folder / "texts.tsv").write_text("".join(f"{n}.wav\t{text}\n" for n, text in enumerate(said)), encoding="utf-8")
    path = to_file(encoder, folder / "files" / "w2a4.onnx", "w2a4", input="log_mel", check=False)
    export.write_card(export.describe([path], encoder), folder / "files")
    return folder


def data(folder, texts=True) -> AudioFolder:
    return AudioFolder(
        str(folder / "audio"), test_pattern="wav", texts=str(folder / "texts.tsv") if texts else None, batch_size=4
    )


@torch.no_grad()
def features(encoder, data, bit_width):
    clips = torch.stack([data.dataset("test")[place]["inputs"] for place in range(10)])
    with quant.at(encoder, bit_width):
        return encoder(*encoder.front_end(clips))


@pytest.fixture
def ssql(monkeypatch, capsys, folder):
    def run(*words: object, reader: object = "frozen_reader.SignReader", texts: bool = True) -> tuple[object, str]:
        words = ["evaluate", "--reader", reader, "--data", "AudioFolder", "--data.root", folder / "audio", *words]
        words += ["--data.test_pattern", "wav", "--data.batch_size", 4]
        words += ["--data.texts", folder / "texts.tsv"] if texts else []
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.mark.filterwarnings("ignore:.*interpolat")
def test_rates_are_those_of_what_was_read_of_folder_and_files(folder, ssql, tmp_path):
    encoders = ["--encoders.torch", folder / "encoder", "--encoders.file", folder / "files" / "w2a4.onnx"]
    code, said = ssql(*encoders, "--bit_widths", list(BITS), "--output", tmp_path)
    assert code == 0, said
    rows = json.loads((tmp_path / "accuracy.json").read_text())
    found = {(row["method"], row["bit_width"], row["metric"]): row for row in rows}
    assert {row["task"] for row in rows} == {"text, SignReader"}
    assert {row["clips"] for row in rows} == {10}
    encoder, texts = load_encoder(folder / "encoder"), data(folder)
    exact, _ = features(encoder, texts, "fp")
    right = [SignReader().normalized(texts.dataset("test")[place]["texts"]) for place in range(10)]
    variance = (exact - exact.mean(dim=(0, 1))).square().mean()
    for bits in BITS:
        values, lengths = features(encoder, texts, bits)
        read = [SignReader().normalized(text) for text in SignReader().read(values, lengths)]
        words = [edits(a.split(), b.split()) for a, b in zip(right, read, strict=True)]
        letters = [edits(a, b) for a, b in zip(right, read, strict=True)]
        spoken = sum(clip.length for clip in words)
        wer = found["torch", bits, "wer"]
        assert wer["value"] == pytest.approx(100 * sum(clip.wrong for clip in words) / spoken)
        insertions = found["torch", bits, "insertions"]["value"]
        assert insertions == pytest.approx(100 * sum(clip.inserted for clip in words) / spoken)
        cer = 100 * sum(clip.wrong for clip in letters) / sum(clip.length for clip in letters)
        assert found["torch", bits, "cer"]["value"] == pytest.approx(cer)
        distance = found["torch", bits, "distance"]
        assert distance["value"] == pytest.approx(float((values - exact).square().mean() / variance), rel=1e-3)
        assert distance["low"] <= distance["value"] <= distance["high"]
        assert wer["low"] <= wer["value"] <= wer["high"]
        assert wer["above_fp"] == pytest.approx(wer["value"] - found["torch", "fp", "wer"]["value"])
        assert wer["above_fp_low"] <= wer["above_fp"] <= wer["above_fp_high"]
    assert found["torch", "fp", "wer"]["value"] > 0
    assert found["torch", "fp", "wer"]["above_fp_high"] == found["torch", "fp", "distance"]["value"] == 0
    assert found["torch", "w2a4", "wer"]["value"] > found["torch", "fp", "wer"]["value"]
    # The file reads as torch does at its bit-width, and its card says so.
    for metric in ("wer", "cer", "distance"):
        assert found["file", "w2a4", metric]["value"] == pytest.approx(
            found["torch", "w2a4", metric]["value"], rel=1e-2
        )
    assert re.fullmatch("[0-9a-f]{64}", found["file", "w2a4", "wer"]["file_sha256"])
    assert "**WER above full precision, points**" in (tmp_path / "accuracy.md").read_text()
    card = json.loads((folder / "files" / "config.json").read_text())
    [entry] = card["files"]
    assert entry["measured"]["text, SignReader, WER, %, n = 10"] == found["file", "w2a4", "wer"]["value"]
    text = (folder / "files" / "README.md").read_text()
    assert "text, SignReader, distance of features, n = 10 (this file)" in text
    # Results of the encoder in torch go to the cards of its files by their bit-width.
    known = json.loads((tmp_path / "accuracy.json").read_text())[0]["weights_sha256"]
    from ssql.reports.rows import results_of

    results = results_of(tmp_path / "accuracy.json", known, None, "encoder")
    assert results["w3a8"]["text, SignReader, WER, %, n = 10"] == found["torch", "w3a8", "wer"]["value"]


@pytest.mark.filterwarnings("ignore:.*interpolat")
def test_encoders_of_the_same_float_weights_are_read_once_at_full_precision(folder, ssql, tmp_path, monkeypatch):
    other = load_encoder(folder / "encoder")
    for name, ranges in other.named_buffers():
        if "activation_m" in name:
            ranges.mul_(1.5)
    save_encoder(other, tmp_path / "other")
    splits = []
    read_split = reading.read_split
    monkeypatch.setattr(reading, "read_split", lambda *given: splits.append(given[1]) or read_split(*given))
    encoders = ["--encoders.a", folder / "encoder", "--encoders.b", tmp_path / "other"]
    code, said = ssql(*encoders, "--bit_widths", '["fp", "w2a4"]', "--output", tmp_path / "out")
    assert code == 0, said
    assert splits == ["fp", "w2a4", "w2a4"]
    rows = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    found = {(row["method"], row["bit_width"]): row for row in rows if row["metric"] == "distance"}
    assert found["b", "fp"]["value"] == 0
    assert found["a", "w2a4"]["value"] != found["b", "w2a4"]["value"]
    assert found["a", "w2a4"]["weights_sha256"] != found["b", "w2a4"]["weights_sha256"]


def test_a_file_alone_has_rates_and_no_distance(folder, ssql, tmp_path):
    code, said = ssql("--encoders.file", folder / "files" / "w2a4.onnx", "--output", tmp_path)
    assert code == 0, said
    rows = json.loads((tmp_path / "accuracy.json").read_text())
    assert [row["metric"] for row in rows] == ["wer", "cer", "insertions"]
    assert all("above_fp" not in row for row in rows)


@pytest.mark.parametrize(
    ("more", "texts", "sentence"),
    [
        (["--reader.takes", 512], True, "the reader takes features 512 wide, those of a are 32 wide: give the reader"),
        (["--reader.of_all", 1500], True, r"takes 1,500 frames of every clip, the encoder gives 60: .*--fill true"),
        ([], False, r"10 of 10 clips of the test split have no text, the first of them 0\.wav: a reader needs texts"),
        (["--tasks", "[class]"], True, "a reader reads texts, and no tasks: give --reader or --tasks"),
        (["--bit_widths", "[w4a9000]"], True, "w4a9000"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, ssql, tmp_path, more, texts, sentence):
    code, said = ssql("--encoders.a", folder / "encoder", "--output", tmp_path / "out", *more, texts=texts)
    lines = [line for line in str(code).splitlines() + said.splitlines() if "error" in line]
    assert code != 0
    assert len(lines) == 1, said
    assert re.search(sentence, lines[0])
    assert not list(tmp_path.rglob("accuracy.*"))


def test_a_clip_without_a_line_is_named(folder, ssql, tmp_path):
    (tmp_path / "some.tsv").write_text("0.wav\tyes\n", encoding="utf-8")
    code, _ = ssql("--encoders.a", folder / "encoder", "--output", tmp_path / "out", "--data.texts",
                   tmp_path / "some.tsv", texts=False)  # fmt: skip
    assert "some.tsv has no line for 9 of 10 audio files, the first of them 1.wav; a line is PATH<TAB>TEXT" in str(code)


def test_texts_are_looked_at_before_any_audio_and_any_encoder(folder, ssql, tmp_path, monkeypatch):
    monkeypatch.setattr("ssql.data.audio_folder.read_clips", lambda *_: pytest.fail("audio was read"))
    texts = "".join(f"{n}.wav\t{'...' if n > 7 else 'yes'}\n" for n in range(10))
    (tmp_path / "wordless.tsv").write_text(texts, encoding="utf-8")
    cases = {
        (): "10 of 10 clips of the test split have no text, the first of them 0.wav",
        ("--data.texts", tmp_path / "wordless.tsv"): "the texts of 2 of 10 clips of the test split leave no word to "
        "compare, the first of them '...' of 8.wav: leave these clips out",
    }
    for words, sentence in cases.items():
        code, _ = ssql("--encoders.a", folder / "encoder", "--output", tmp_path / "out", *words, texts=False)
        assert sentence in str(code)


def test_whispers_decoder_says_what_it_misses(folder, ssql, tmp_path, monkeypatch):
    words = ["--encoders.a", folder / "encoder", "--output", tmp_path / "out", "--reader.folder", tmp_path]
    code, said = ssql(*words, reader="WhisperDecoder")
    missing = "is not installed, which belongs to the group reader: pip install 'ssql-toolkit[reader]'"
    assert code != 0
    assert missing in str(code) + said or "has no model.bin" in str(code) + said
    # As where the group is installed.
    monkeypatch.setattr("ssql.evaluation.whisper_decoder.check_installed", lambda *modules: None)
    cases = {
        (tmp_path, 512): r"it has no model\.bin; .*of whisper-base or whisper-base\.en$",
        (tmp_path, 32): r"it has no model\.bin; .*of the model that this encoder is from$",
        (tmp_path / "none", 384): r"none: there is no such folder; .*of whisper-tiny or whisper-tiny\.en$",
    }
    for (name, width), sentence in cases.items():
        with pytest.raises(FileNotFoundError, match=sentence):
            WhisperDecoder(str(name)).check(width)
    (tmp_path / "model.safetensors").write_bytes(b"")
    code, said = ssql(*words, reader="WhisperDecoder")
    assert f"--reader.folder {tmp_path}: it holds a model that is not converted yet" in str(code) + said
    (tmp_path / "model.bin").write_bytes(b"")
    WhisperDecoder(str(tmp_path)).check()
    with pytest.raises(ValueError, match="unknown normalizer 'german': write one of english, basic"):
        WhisperDecoder(str(tmp_path), normalizer="german")
    with pytest.raises(ValueError, match="language is a code such as en or de, not 'English'"):
        WhisperDecoder(str(tmp_path), language="English")


def test_a_damaged_decoder_is_refused(tmp_path):
    pytest.importorskip("ctranslate2", reason="of the group reader")
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(ValueError, match="holds no Whisper of CTranslate2"):
        assert WhisperDecoder(str(tmp_path)).width


def test_whispers_decoder_attends_to_a_clips_own_frames(tmp_path, monkeypatch):
    """It has no mask: clips of one length are read together, others alone."""
    monkeypatch.setattr("ssql.evaluation.whisper_decoder.check_installed", lambda *modules: None)
    monkeypatch.setattr("ssql.evaluation.whisper_decoder._storage", lambda values: values)
    (tmp_path / "model.bin").write_bytes(b"")
    reader, read = WhisperDecoder(str(tmp_path)), []

    class Model:
        is_multilingual = False

        def generate(self, encoded, prompts, **options):
            assert len(prompts) == len(encoded)
            read.append(encoded.shape)
            return [SimpleNamespace(sequences=[[f"Ġ{int(clip.sum())}"]]) for clip in encoded]

    reader.__dict__["_model"] = Model()
    features = torch.ones(3, 4, 2)
    assert reader.read(features, torch.tensor([4, 4, 4])) == [" 8", " 8", " 8"]
    assert reader.read(features, torch.tensor([4, 2, 3])) == [" 8", " 4", " 6"]
    assert read == [(3, 4, 2), (1, 4, 2), (1, 2, 2), (1, 3, 2)]
    # Followed by silence all are of its length, and read together.
    save_file({"features": torch.full((5, 2), 10.0)}, tmp_path / "silence.safetensors")
    followed = WhisperDecoder(str(tmp_path), silence=str(tmp_path / "silence.safetensors"))
    followed.__dict__ |= {"_model": Model(), "width": 2}
    assert followed.read(features, torch.tensor([4, 2, 3])) == [" 28", " 64", " 46"]
    assert read[4:] == [(3, 5, 2)]
    followed.__dict__ |= {"width": 3}
    del followed.__dict__["_silence"]
    with pytest.raises(ValueError, match=r"has features of shape \(5, 2\), the reader takes \(frames, 3\)"):
        followed.read(features, torch.tensor([4, 2, 3]))
    with pytest.raises(FileNotFoundError, match="reader silence .* does not exist: ssql features writes it"):
        WhisperDecoder(str(tmp_path), silence=str(tmp_path / "nowhere.safetensors"))


def test_tokens_become_text():
    assert text_of(["<|startoftranscript|>", "ĠIt", "'s", "Ġa", "Ġcaf", "Ã©", ".", "<|endoftext|>"]) == " It's a café."
