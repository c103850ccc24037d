"""`ssql features` as it is typed, and the file it writes."""

import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from written import to_file

from encoders import VisionEncoder, load_encoder, save_encoder
from encoders.speech.audio_file import read_audio
from ssql import cli
from ssql.data.espeak import Utterance, synthesize
from ssql.feature_files.writer import feature_file

MINUTES = 5
TEXT = "A file of any length is read in a stream, cut in windows, and its features are stitched."


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Five minutes of speech at 22,050 Hz, in stereo whose second channel is noise."""
    rate = 22_050
    spoken = torch.cat(list(synthesize([Utterance(TEXT, f"en-us+f{n}", words_per_minute=140) for n in (1, 2, 3)])))
    samples = np.resize(spoken.numpy(), 60 * MINUTES * rate)  # over and over, faster than it was spoken
    path = tmp_path_factory.mktemp("audio") / "talk.flac"
    noise = np.random.default_rng(0).standard_normal(len(samples)) * 0.1
    soundfile.write(path, np.stack([samples, noise], axis=1), rate)
    return path


@pytest.fixture
def ssql(monkeypatch):
    def run(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["ssql", "features", *map(str, words)])
        cli.main()

    return run


def test_five_minutes_become_a_file_of_features(talk, saved, ssql, tmp_path, capsys):
    output = tmp_path / "talk.safetensors"
    ssql(talk, "--encoder", saved, "--output", output)
    said = " ".join(capsys.readouterr().out.split())
    assert "15000 features of 300.00 s" in said and "at most where they meet" in said
    found = load_file(output)
    assert found["features"].shape == (50 * 60 * MINUTES, 32)
    assert np.allclose(found["times"], np.arange(50 * 60 * MINUTES) / 50)
    with safe_open(output, "numpy") as file:
        about = file.metadata()
    assert (about["frame_rate_hz"], about["bit_width"], about["audio"]) == ("50", "fp", "talk.flac")
    assert (about["window_s"], about["overlap_s"]) == ("30", "4")
    assert 0 < float(about["largest_seam"]) < 2
    # The first window's frames, as the encoder alone gives them.
    encoder, waveform = load_encoder(saved), torch.from_numpy(read_audio(talk))
    with torch.no_grad():
        expected = encoder(*encoder.front_end(waveform[None, : 30 * 16_000]))[0][0].numpy()
    assert np.allclose(found["features"][:1_400], expected[:1_400], atol=1e-4 * np.abs(expected).max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.safetensors"]


def test_bit_width_and_files_beside_each_other(talk, saved, ssql, tmp_path):
    clips = [tmp_path / "a.wav", tmp_path / "b.wav"]
    samples, rate = soundfile.read(talk, frames=22_050 * 7)
    for clip, seconds in zip(clips, (7, 3), strict=True):
        soundfile.write(clip, samples[: rate * seconds], rate)
    file = to_file(load_encoder(saved), tmp_path / "encoder-int4.onnx", "w4a8", check=False)
    words = ["--window", 2, "--overlap", 0.5]
    ssql(*clips, "--encoder", saved, "--bit_width", "w4a8", "--output", tmp_path / "torch", *words, "--batch_size", 2)
    ssql(*clips, "--encoder", file, "--output", tmp_path / "onnx", *words)
    for name, frames in (("a", 350), ("b", 150)):
        features = [load_file(tmp_path / kind / f"{name}.safetensors")["features"] for kind in ("torch", "onnx")]
        assert [len(values) for values in features] == [frames, frames]
        cosine = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, features))
        assert cosine.min() > 0.999
    with pytest.raises(SystemExit, match=r"encoder-int4\.onnx runs at w4a8: leave --bit_width out"):
        ssql(*clips, "--encoder", file, "--output", tmp_path / "again", "--bit_width", "w8a8")
    with pytest.raises(SystemExit, match=r"a\.safetensors exists already: .*--overwrite true"):
        ssql(*clips, "--encoder", saved, "--output", tmp_path / "torch")


def test_a_bad_recording_is_named_and_leaves_no_file(saved, ssql, tmp_path):
    blip, torn = tmp_path / "blip.wav", tmp_path / "torn.wav"
    soundfile.write(blip, np.full(200, 0.1), 16_000)
    soundfile.write(torn, np.full(640_000, 0.1), 16_000)
    torn.write_bytes(torn.read_bytes()[:900_000])
    for path, message in (
        (blip, r"blip\.wav of 12 ms is too short for one feature"),
        (torn, r"torn\.wav was cut off"),
        (tmp_path / "nowhere.wav", r"nowhere\.wav does not exist"),
    ):
        with pytest.raises(SystemExit, match=f"ssql features: error: .*{message}"):
            ssql(path, "--encoder", saved, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_words_that_do_not_go_together_are_refused(talk, saved, ssql, tmp_path):
    with pytest.raises(SystemExit, match="2 audio files do not go into one file"):
        ssql("a.wav", "b.wav", "--encoder", saved, "--output", tmp_path / "x.safetensors")
    with pytest.raises(SystemExit, match=r"b/a\.wav and another audio file would both go to"):
        ssql("a.wav", "b/a.wav", "--encoder", saved, "--output", tmp_path)
    save_encoder(VisionEncoder("resnet10t"), tmp_path / "images")
    with pytest.raises(SystemExit, match="only speech encoders have features of frames"):
        ssql(talk, "--encoder", tmp_path / "images", "--output", tmp_path / "out")


def test_a_file_is_written_as_features_come(tmp_path):
    """100 MB of features, of which memory holds the next ones; safetensors' own reader reads them."""
    path, pieces, width = tmp_path / "features.safetensors", 200, 129
    generator = np.random.default_rng(0)
    tracemalloc.start()
    with feature_file(path, width, 12.5, {"a": "b"}) as file:
        for _ in range(pieces):
            file.append(generator.standard_normal((1_001, width), dtype=np.float32))
        assert not path.exists()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 1e8 > 50 * peak
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"a": "b"}
        found = file.get_slice("features")
        assert found.get_shape() == [pieces * 1_001, width]
        last = found[pieces * 1_001 - 1 :]
        times = file.get_tensor("times")
    generator = np.random.default_rng(0)
    expected = [generator.standard_normal((1_001, width), dtype=np.float32) for _ in range(pieces)][-1][-1:]
    assert np.array_equal(last, expected)
    assert times[12_500] == 1_000


def test_a_file_that_was_not_finished_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), feature_file(tmp_path / "x.safetensors", 2, 50, {}) as file:
        file.append(np.zeros((3, 2), np.float32))
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []
