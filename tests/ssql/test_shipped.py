"""What `ssql evaluate` measures is what is shipped: the saved encoder as it is, or the exported file itself."""

import json
import sys

import numpy as np
import pytest
import torch
from written import to_file

import quant
from encoders import VisionEncoder, load_encoder, save_encoder, weights_sha256
from export.runtime.file_encoder import FileEncoder, file_sha256
from ssql import cli
from ssql.data import SpokenWords
from ssql.evaluation.embeddings import embed_split

WORDS = ["--data", "SpokenWords", "--data.languages", "[en-us]", "--data.train_size", "100", "--data.test_size", "50"]
WORDS += ["--tasks", "[word, voice]"]


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """Rows of `ssql evaluate`."""

    def run(encoders, *words):
        names = json.dumps({name: str(path) for name, path in encoders.items()})
        words = ["--encoders", names, "--output", str(tmp_path / "results"), "--overwrite", "true", *words]
        monkeypatch.setattr(sys, "argv", ["ssql", "evaluate", *words])
        cli.main()
        return json.loads((tmp_path / "results" / "accuracy.json").read_text())

    return run


def values(rows, method, bit_width):
    found = [row for row in rows if (row["method"], row["bit_width"]) == (method, bit_width)]
    return {(row["task"], row["metric"]): row["value"] for row in found}


@pytest.mark.usefixtures("speak_once")
def test_a_saved_range_or_correction_that_changes_changes_the_table(saved, evaluated, tmp_path):
    shrunk = load_encoder(saved)
    for layer in quant.quant_layers(shrunk).values():
        layer.activation_min.mul_(0.01)
        layer.activation_max.mul_(0.01)
    save_encoder(shrunk, tmp_path / "shrunk")
    corrected = load_encoder(saved)
    quant.correct_bias(corrected, "w4a8", [torch.randn(2, 80, 100)])
    next(iter(quant.quant_layers(corrected).values())).correction(quant.parse_bit_width("w4a8")).add_(3)
    save_encoder(corrected, tmp_path / "corrected")
    folders = {"saved": saved, "shrunk": tmp_path / "shrunk", "corrected": tmp_path / "corrected"}
    rows = evaluated(folders, "--bit_widths", "[fp, w8a8, w4a8]", *WORDS)
    for name, folder in folders.items():
        assert {row["weights_sha256"] for row in rows if row["method"] == name} == {
            weights_sha256(load_encoder(folder))
        }
        assert values(rows, name, "fp") == values(rows, "saved", "fp")
    assert values(rows, "shrunk", "w8a8") != values(rows, "saved", "w8a8")
    assert values(rows, "corrected", "w8a8") == values(rows, "saved", "w8a8")
    assert values(rows, "corrected", "w4a8") != values(rows, "saved", "w4a8")
    anew = ["--quantizers", '{"min_max": {"observer": "min_max"}}']
    rows = evaluated(folders, "--bit_widths", "[w8a8]", *WORDS, *anew)
    assert values(rows, "shrunk", "w8a8") == values(rows, "saved", "w8a8")


@pytest.mark.usefixtures("speak_once")
def test_files_have_the_table_of_their_encoder_but_for_clips_at_a_rounding_edge(saved, evaluated, tmp_path):
    encoder = load_encoder(saved)
    # Not w8a8: a processor without VNNI saturates its sums, and the file has another table.
    forms = {"fp": "log_mel", "w4a8": "waveform"}
    files = {b: to_file(encoder, tmp_path / f"{b}.onnx", b, input=f, check=False) for b, f in forms.items()}
    rows = evaluated({"torch": saved, **files}, "--bit_widths", "[fp, w4a8]", *WORDS)
    data = SpokenWords(languages=["en-us"], train_size=100, test_size=50)
    for bits, path in files.items():
        own = [row for row in rows if row["method"] == bits]
        assert {row["file_sha256"] for row in own} == {file_sha256(path)}
        assert {row["weights_sha256"] for row in own} == {weights_sha256(encoder)}
        assert {row["size_bytes"] for row in own} == {path.stat().st_size}
        at_an_edge = share_at_an_edge(encoder, FileEncoder(path), data, bits)
        assert at_an_edge == 0 if bits == "fp" else at_an_edge < 0.5
        in_torch, in_file = values(rows, "torch", bits), values(rows, bits, bits)
        assert in_torch.keys() == in_file.keys()
        for name, value in in_torch.items():
            assert abs(value - in_file[name]) <= 100 * at_an_edge, (bits, name)

    # Alone, a quantized file has nothing of full precision to compare with.
    rows = evaluated({"int4": files["w4a8"]}, *WORDS)
    assert {row["metric"] for row in rows} == {"linear", "knn"}
    assert {row["bit_width"] for row in rows} == {"w4a8"}


def share_at_an_edge(encoder, file, data, bits):
    """Of all clips: those whose embeddings differ by more than float32's rounding, and by how much does not matter."""
    differ = []
    for split in ("train", "test"):
        in_torch, _ = embed_split(encoder, data, split, bits)
        batches = data.evaluation_dataloader(split)
        in_file = torch.cat([file.embed_raw(batch["inputs"], batch["lengths"]) for batch in batches]).numpy()
        differ.append(np.abs(in_torch - in_file).max(axis=1) > 1e-4 * np.abs(in_torch).max())
    return np.concatenate(differ).mean()


def test_files_of_images_are_measured_too(evaluated, tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("test_resnet", in_channels=1, std=0.5)).eval()
    quant.calibrate(encoder, [torch.rand(8, 1, 8, 8)], lambda images: encoder.embed_raw(images))
    save_encoder(encoder, tmp_path / "encoder")
    file = to_file(encoder, tmp_path / "file.onnx", "w4a8", image_size=8, check=False)
    rows = evaluated({"torch": tmp_path / "encoder", "file": file}, "--bit_widths", "[w4a8]", "--data", "Digits")
    in_torch, in_file = values(rows, "torch", "w4a8"), values(rows, "file", "w4a8")
    assert in_torch.keys() == in_file.keys()
    assert all(abs(value - in_file[name]) < 1.5 for name, value in in_torch.items())
    with pytest.raises(SystemExit, match=r"file\.onnx takes images of shape \(batch, 1, 16, 16\).*8, 8"):
        wrong = to_file(encoder, tmp_path / "wrong" / "file.onnx", "w4a8", image_size=16, check=False)
        evaluated({"file": wrong}, "--data", "Digits")
    with pytest.raises(SystemExit, match="a is an encoder for image, the data is audio"):
        evaluated({"a": file}, *WORDS)
