"""Files that would be over protobuf's 2 GB, in small: the limit is lower."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest
import soundfile
import torch
from safetensors.numpy import load_file
from written import to_file, unmeasured

import export
import quant
from encoders import SpeechTransformer, save_encoder
from export import external_data
from export.onnx_file import load, rename, stored_array
from export.runtime.start import start

LIMIT = "export.onnx_file.LARGEST_FILE"
KINDS = {"fp": "encoder-fp32.onnx", "w8a8": "encoder-int8.onnx", "w2a8": "encoder-w2a8.onnx"}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=256, depth=1, heads=2)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    return encoder


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "encoder"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def files(saved, tmp_path_factory):
    """As `ssql export` leaves them."""
    from ssql.commands.export import export as command

    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LIMIT, 1000)
        patch.setattr(export, "measure_files", unmeasured)
        command(str(saved), str(folder), [*KINDS], "waveform")
        command(str(saved), str(folder), "fp", "waveform", float16=True)
    return folder


@pytest.fixture
def ssql(monkeypatch):
    from ssql import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["ssql", *map(str, words)])
        cli.main()

    return run


def feeds():
    waveform = 0.1 * np.random.default_rng(0).standard_normal((1, 16_000)).astype(np.float32)
    return {"waveform": waveform, "lengths": np.array([16_000])}


@pytest.mark.parametrize("name", [*KINDS.values(), "encoder-fp16.onnx"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino_f32"])
def test_two_files_compute_what_one_does(files, encoder, tmp_path, name, runtime):
    kinds = {file: bit_width for bit_width, file in KINDS.items()}
    options = {"input": "waveform", "check": False, "float16": name == "encoder-fp16.onnx"}
    one = to_file(encoder, tmp_path / name, kinds.get(name, "fp"), **options)
    assert external_data.data_file(one) is None
    data = external_data.data_file(files / name)
    assert data is not None
    assert data.path == files / f"{name}.data"
    found, expected = (start(path, runtime, exact=True).run(["features"], feeds())[0] for path in (files / name, one))
    assert np.array_equal(found, expected)
    onnx.checker.check_model(files / name)


def test_verified_before_they_have_their_names_and_after(files, saved, ssql, capsys):
    for name in KINDS.values():
        assert json.loads((files / name).with_suffix(".verification.json").read_text())["passed"]
        ssql("verify", "--file", files / name, "--encoder", saved, "--runtime", "openvino_f32")
        assert "the file agrees with torch at" in capsys.readouterr().out
    assert not [path.name for path in files.iterdir() if path.name.startswith(".")]


def test_the_card_knows_both_files(files):
    config = json.loads((files / "config.json").read_text())
    entries = {entry["file"]: entry for entry in config["files"]}
    assert entries.keys() == {*KINDS.values(), "encoder-fp16.onnx"}
    for name, entry in entries.items():
        both = (files / name).stat().st_size + (files / entry["data_file"]).stat().st_size
        assert (entry["data_file"], entry["size_bytes"]) == (f"{name}.data", both)
        assert len(entry["data_sha256"]) == 64
        assert f"`{name}` has its weights in `{name}.data`" in (files / "README.md").read_text()
    assert entries["encoder-fp16.onnx"]["size_bytes"] < 0.55 * entries["encoder-fp32.onnx"]["size_bytes"]


def test_bench_and_features_take_them(files, ssql, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("export.runtime.bench.COLD_STARTS", 1)
    words = ["--seconds", "[0.5]", "--threads", "[1]", "--repeats", "1", "--runtimes", "[onnxruntime, openvino_f32]"]
    ssql("bench", files / "encoder-fp32.onnx", *words, "--output", tmp_path / "latency")
    for row in json.loads((tmp_path / "latency.json").read_text()):
        assert row["size_bytes"] == external_data.size_of(files / "encoder-fp32.onnx") > 2_000_000
    soundfile.write(tmp_path / "talk.wav", feeds()["waveform"][0], 16_000)
    ssql("features", tmp_path / "talk.wav", "--encoder", files / "encoder-int8.onnx", "--output", tmp_path / "out")
    assert load_file(tmp_path / "out" / "talk.safetensors")["features"].shape == (50, 256)
    assert export.OnnxEncoder(files / "encoder-int8.onnx")(feeds()["waveform"][0], 16_000).shape == (50, 256)
    operators = export.integer_operators(files / "encoder-int8.onnx")
    assert operators["MatMulIntegerToFloat"] > 0


def test_a_file_without_its_weights_is_told_so_in_a_sentence(files, saved, ssql, tmp_path):
    path = tmp_path / "encoder-int8.onnx"
    shutil.copy(files / path.name, path)
    soundfile.write(tmp_path / "talk.wav", feeds()["waveform"][0], 16_000)
    missing = r"encoder-int8\.onnx has its weights in a second file, encoder-int8\.onnx\.data, which is not beside it"
    features = ["features", tmp_path / "talk.wav", "--encoder", path, "--output", tmp_path / "out"]
    words = [["verify", "--file", path, "--encoder", saved], ["bench", path], features]
    words += [[*features, "--runtime", "openvino"]]
    for command in words:
        with pytest.raises(SystemExit, match=f"ssql {command[0]}: error: .*{missing}"):
            ssql(*command)
    with pytest.raises(ValueError, match=missing):
        export.OnnxEncoder(path)
    data = tmp_path / f"{path.name}.data"
    whole = (files / data.name).read_bytes()
    data.write_bytes(whole[:-100])
    with pytest.raises(SystemExit, match=r"onnx\.data is damaged: it has [\d,]+ bytes, and encoder-int8\.onnx needs"):
        ssql(*words[0])
    data.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(SystemExit, match=r"onnx\.data is not the file of weights that was written with encoder-int8"):
        ssql(*words[0])


def test_weights_of_another_file_are_not_taken_for_its_own(files, saved, ssql, tmp_path):
    for name in ("encoder-int8.onnx", "encoder-int8.onnx.data"):
        shutil.copy(files / name, tmp_path)
    path, data = tmp_path / "encoder-int8.onnx", tmp_path / "encoder-int8.onnx.data"
    content = bytearray(data.read_bytes())
    content[-100] ^= 1
    data.write_bytes(content)
    soundfile.write(tmp_path / "talk.wav", feeds()["waveform"][0], 16_000)
    features = ["features", tmp_path / "talk.wav", "--encoder", path, "--output", tmp_path / "out"]
    for words in (features, [*features, "--runtime", "openvino"], ["verify", "--file", path, "--encoder", saved]):
        with pytest.raises(
            SystemExit, match=r"onnx\.data is not the file of weights that was written with encoder-int8"
        ):
            ssql(*words)
    assert not (tmp_path / "out" / "talk.safetensors").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("apart", [True, False])
def test_files_behind_links_are_verified(files, encoder, saved, ssql, tmp_path, capsys, link, apart):
    target, folder = (files if apart else tmp_path), tmp_path / "links"
    if not apart:
        to_file(encoder, tmp_path / "encoder-int8.onnx", "w8a8", input="waveform", check=False)
    folder.mkdir()
    for path in target.glob("encoder-int8.onnx*"):
        link(path, folder / path.name)
    ssql("verify", "--file", folder / "encoder-int8.onnx", "--encoder", saved)
    assert "the file agrees with torch at" in capsys.readouterr().out


@pytest.mark.parametrize("elsewhere", ["../encoder.data", "absolute"])
def test_weights_in_another_folder_are_not_read(files, saved, ssql, tmp_path, elsewhere):
    shutil.copy(files / "encoder-int8.onnx.data", tmp_path / "encoder.data")
    path = tmp_path / "inner" / "encoder-int8.onnx"
    path.parent.mkdir()
    shutil.copy(files / path.name, path)
    rename(path, str(tmp_path / "encoder.data") if elsewhere == "absolute" else elsewhere)
    soundfile.write(tmp_path / "talk.wav", feeds()["waveform"][0], 16_000)
    features = ["features", tmp_path / "talk.wav", "--encoder", path, "--output", tmp_path / "out"]
    for words in (features, [*features, "--runtime", "openvino"], ["verify", "--file", path, "--encoder", saved]):
        with pytest.raises(SystemExit, match=r"names a file of weights in another folder, .*encoder\.data: only what"):
            ssql(*words)
    stored = load(path).graph.initializer
    with pytest.raises(ValueError, match="weights are beside their ONNX file, nowhere else"):
        stored_array(next(tensor for tensor in stored if tensor.external_data), path.parent)


def test_an_export_that_needs_one_file_removes_the_second_of_an_earlier_one(files, encoder, tmp_path, monkeypatch):
    path = tmp_path / "encoder.onnx"
    data = external_data.beside(path)
    monkeypatch.setattr(LIMIT, 1000)
    to_file(encoder, path, check=False)
    first = data.read_bytes()
    to_file(encoder, path, "w8a8", check=False, overwrite=True)
    assert data.read_bytes() != first
    export.verify(path, encoder)
    monkeypatch.undo()
    to_file(encoder, path, "w8a8", check=False, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    export.verify(path, encoder)


def test_a_file_of_somebody_else_in_the_place_of_the_second_is_refused(encoder, saved, ssql, tmp_path):
    data = tmp_path / "encoder-fp32.onnx.data"
    data.write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"onnx\.data was not written by ssql and would be replaced by the weights"
    ):
        to_file(encoder, tmp_path / "encoder-fp32.onnx", overwrite=True)
    with pytest.raises(SystemExit, match=r"onnx\.data was not written by ssql"):
        ssql("export", "--encoder", saved, "--output", tmp_path, "--bit_width", "fp")
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


def test_a_file_that_fails_keeps_its_weights_under_its_other_name(encoder, tmp_path, monkeypatch):
    path, failed = tmp_path / "encoder.onnx", tmp_path / "encoder.failed.onnx"
    monkeypatch.setattr(LIMIT, 1000)
    to_file(encoder, path, check=False)
    before = path.read_bytes(), external_data.beside(path).read_bytes()
    monkeypatch.setattr("export.check.verify.LIMIT", 0.0)
    with pytest.raises(export.VerificationError, match=r"encoder\.failed\.onnx departs from torch"):
        to_file(encoder, path, overwrite=True)
    assert (path.read_bytes(), external_data.beside(path).read_bytes()) == before
    names = {"encoder.onnx", "encoder.onnx.data", "encoder.failed.onnx", "encoder.failed.onnx.data"}
    assert {file.name for file in tmp_path.iterdir()} == names | {"encoder.failed.verification.json"}
    os.remove(external_data.beside(path))
    assert start(failed).get_inputs()[0].name == "log_mel"
    monkeypatch.undo()
    monkeypatch.setattr("export.check.verify.LIMIT", 0.0)
    with pytest.raises(export.VerificationError, match="departs"):
        to_file(encoder, path, overwrite=True)
    assert not external_data.beside(failed).exists()


def test_a_full_disk_leaves_what_was_there(encoder, tmp_path, monkeypatch, small_disk):
    monkeypatch.setattr(LIMIT, 1000)
    with pytest.raises(OSError, match=r"encoder\.onnx was not written, and what was there is unchanged"):
        to_file(encoder, tmp_path / "encoder.onnx", check=False)
    assert list(tmp_path.iterdir()) == []
