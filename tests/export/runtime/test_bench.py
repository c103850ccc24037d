import logging
import re
import resource

import pytest
import torch
from written import to_file

import export
from encoders import SpeechTransformer, VisionEncoder
from export.runtime.bench import _in_fresh_process
from export.runtime.fresh_process import feed
from export.runtime.session import open_session


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=1, heads=2)
    return to_file(encoder, tmp_path_factory.mktemp("onnx") / "speech.onnx", check=False)


def test_files_are_measured_side_by_side(file, caplog):
    caplog.set_level(logging.INFO)
    rows = export.measure_files([file, file], seconds=(0.5, 1.0), threads=(1, 2), repeats=3)
    assert [(row["threads"], row["seconds"]) for row in rows] == [
        (t, s) for t in (1, 2) for s in (0.5, 1.0) for _ in "ab"
    ]
    assert all(row["size_ratio"] == 1 and row["latency_ms"] >= row["fastest_ms"] > 0 for row in rows)
    assert all(row["speedup"] == 1 for row in rows[::2])
    assert rows[1]["speedup"] == rows[0]["fastest_ms"] / rows[1]["fastest_ms"]
    assert rows[0]["real_time_factor"] == rows[0]["latency_ms"] / 500
    # How far it is, with the time that is left, and each row as soon as it is known.
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if re.search(r"file 2 of 2, .*; 5 of 16 steps done, about 0:\d\d:\d\d left", line)]
    known = [f"speech.onnx, 0.5 s on 1 thread: {row['latency_ms']:.2f} ms (fastest" for row in rows[:2]]
    later = next(place for place, line in enumerate(said) if "start and memory, 1 s on 1 thread" in line)
    assert [line[: len(start)] for line, start in zip(said[later - 2 : later], known, strict=True)] == known


def test_a_fresh_process_tells_its_start_and_its_memory(file):
    result = _in_fresh_process(file, 1.0, 1)
    assert result["cold_start_ms"] > 0
    # Less than this process, which has torch in it.
    assert 2**24 < result["peak_memory_bytes"] < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(("input", "frames"), [("log_mel", 200), ("waveform", 32_000)])
def test_inputs_follow_what_the_file_says(input, frames, tmp_path):
    path = to_file(SpeechTransformer(width=32, depth=1, heads=2), tmp_path / "x.onnx", input=input, check=False)
    inputs = feed(open_session(path), 2.0)
    assert (inputs[input].shape[-1], inputs["lengths"].tolist()) == (frames, [frames])


def test_what_cannot_be_measured_is_said(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export.measure_files(["nowhere.onnx"])
    with pytest.raises(ValueError, match="at least one file"):
        export.measure_files([])
    image = to_file(VisionEncoder("test_resnet"), tmp_path / "image.onnx", check=False, image_size=(32, 64))
    with pytest.raises(ValueError, match="same input, got images and log_mel"):
        export.measure_files([file, image])
    (row,) = export.measure_files([image], repeats=1)
    assert (row["seconds"], row["real_time_factor"]) == (0.0, None)
