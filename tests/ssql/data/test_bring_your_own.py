"""Each layout and format of docs/data.md, through the command line."""

import json
import os
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from layout_folders import LAYOUTS, plain, record

from encoders.speech.audio_file import AUDIO_NAMES, NOT_READ, READ
from ssql.data.layouts import Layout

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
FORMATS = (
    ".wav",
    ".rf64",
    ".w64",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".au",
    ".caf",
    ".sph",
    ".voc",
)


@pytest.fixture
def evaluate(ssql, pretrained, tmp_path):
    """Probe an encoder on a folder; gives a task's accuracy and its test clips for each task."""

    def run(root: Path, *options: object) -> dict[str, tuple[float, int]]:
        words = ["--data", "AudioFolder", "--data.root", root, "--bit_widths", "[fp]", *options]
        ssql("evaluate", "--encoders.mine", pretrained, "--output", tmp_path / "out", *words)
        rows = json.loads((tmp_path / "out" / "accuracy.json").read_text())
        return {
            row["task"]: (row["value"], row["clips"]) for row in rows if row["metric"] not in ("knn", "linear_fp_head")
        }

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_found_and_its_labels_are_probed(layout, evaluate, tmp_path):
    make, options = LAYOUTS[layout]
    make(tmp_path / "data")
    options = [tmp_path / "data" / word if word.endswith(".CSV") else word for word in options]
    measured = evaluate(tmp_path / "data", *options)
    task = "class" if layout == "folder" else "speaker"
    assert measured[task] == (100.0, 6)
    others = {"common_voice": {"gender"}, "huggingface": {"pitch"}}.get(layout, set())
    assert set(measured) == {task} | others


def test_every_layout_has_its_row_and_its_test():
    table = PAGE.split("## Layouts")[1].split("`--data.labels labels.csv`")[0]
    rows = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert rows == set(get_args(Layout)) - {"auto"} == set(LAYOUTS) - {"manifest"}


def test_every_format_has_its_row_and_its_test():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (yes|no)", PAGE.split("## Layouts")[0], re.MULTILINE)
    read = {name for _, names, answer in rows if answer == "yes" for name in re.findall(r"`(\.\w+)`", names)}
    others = {name for _, names, answer in rows if answer == "no" for name in re.findall(r"`(\.\w+)`", names)}
    assert read - {".aifc"} == set(FORMATS)
    assert read <= set(READ)
    assert others <= set(NOT_READ)


def test_formats_are_read_and_what_is_none_is_named(evaluate, tmp_path, caplog):
    root = tmp_path / "data"
    for speaker in ("anna", "ben"):
        for ending in FORMATS:
            record(root / speaker / f"{speaker}{ending}", speaker, channels=2)
    (root / "anna" / "talk.m4a").write_bytes(b"\0\0\0 ftypM4A " + bytes(999))
    (root / "anna" / "talk.MP4").write_bytes(b"\0\0\0 ftypisom" + bytes(999))
    half(record(root / "ben" / "half.wav", "ben"))
    (root / "ben" / "notes.txt").write_text("no sound")
    measured = evaluate(root, "--data.test_pattern", "o|a$|u$")  # .voc .ogg .oga .opus .au and more
    assert measured["class"] == (100.0, 2 * sum(bool(re.search("o|a$|u$", ending)) for ending in FORMATS))
    assert "skipped 1 files (.m4a is no format that is read): anna/talk.m4a" in caplog.text
    assert "skipped 1 files (.mp4 is no format that is read): anna/talk.MP4" in caplog.text
    assert "skipped 1 files (cut off): ben/half.wav" in caplog.text
    assert "notes.txt" not in caplog.text


@pytest.mark.parametrize("ending", FORMATS)
def test_features_of_every_format(ending, ssql, pretrained, tmp_path):
    audio = record(tmp_path / f"talk{ending}", "ben", channels=2)
    ssql("features", audio, "--encoder", pretrained, "--output", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["features"].shape == (30, 16)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("half.wav", "half.wav was cut off"),
        ("half.mp3", "half.mp3 was cut off after"),
        ("half.opus", "half.opus is no audio file that libsndfile reads"),
        ("talk.m4a", "talk.m4a is no audio file that libsndfile reads"),
    ],
)
def test_what_a_folder_skips_a_command_refuses(name, sentence, ssql, pretrained, evaluate, tmp_path, caplog):
    root = tmp_path / "data"
    plain(root)
    odd = root / "anna" / name
    if name == "talk.m4a":
        odd.write_bytes(b"\0\0\0 ftypM4A " + bytes(999))
    else:
        half(record(odd, "anna"))
    with pytest.raises(SystemExit) as end:
        ssql("features", odd, "--encoder", pretrained, "--output", tmp_path / "out.safetensors")
    assert sentence in str(end.value.code)
    assert not (tmp_path / "out.safetensors").exists()
    assert evaluate(root, "--data.test_pattern", "test-")["class"] == (100.0, 6)
    assert f"anna/{name}" in next(line for line in caplog.text.splitlines() if "skipped 1 files" in line)


def test_speech_on_either_channel_has_the_same_features(ssql, pretrained, tmp_path, caplog):
    speech = soundfile.read(record(tmp_path / "mono.wav", "ben"), dtype="float32")[0]

    def features_of(name: str) -> np.ndarray:
        output = tmp_path / f"{name}.safetensors"
        ssql("features", tmp_path / f"{name}.wav", "--encoder", pretrained, "--output", output)
        return load_file(output)["features"]

    found = []
    for place, name in enumerate(("left", "right")):
        stereo = np.zeros((len(speech), 2), np.float32)
        stereo[:, place] = speech
        soundfile.write(tmp_path / f"{name}.wav", stereo, 16_000)
        found.append(features_of(name))
        assert f"{name}.wav: channel {1 - place} is silent, of 2 counted from 0" in caplog.text
    left, right = found
    assert np.array_equal(left, right)
    silence = np.zeros_like(speech)
    silence[0] = 1e-4  # a file of nothing but zeros is a sound too
    soundfile.write(tmp_path / "silence.wav", silence, 16_000)
    assert np.abs(features_of("silence") - right).max() > 0.1


def test_linked_folders_are_followed_once(evaluate, tmp_path, caplog):
    plain(tmp_path / "elsewhere")
    root = tmp_path / "data"
    root.mkdir()
    for speaker in ("anna", "ben"):
        (root / speaker).symlink_to(tmp_path / "elsewhere" / speaker)
    (tmp_path / "elsewhere" / "anna" / "round").symlink_to(root)
    (root / "zweite").symlink_to(tmp_path / "elsewhere" / "ben")
    (root / "gone").symlink_to(tmp_path / "unplugged")
    assert evaluate(root, "--data.test_pattern", "test-")["class"] == (100.0, 6)
    assert "left out 2 links to folders that are here already: " in caplog.text
    assert "anna/round" in caplog.text
    assert "zweite" in caplog.text
    assert "lead nowhere or may not be entered: gone" in caplog.text


def test_a_layout_that_is_not_there_is_named(ssql, pretrained, tmp_path):
    plain(tmp_path / "data")
    for layout, sentence in (
        ("kaldi", "has no wav.scp"),
        ("nemo", "has no file of JSON lines with audio_filepath"),
        ("common_voice", "has no train.tsv"),
        ("huggingface", "has no metadata.csv"),
        ("librispeech", "has no recording in the layout librispeech"),
    ):
        with pytest.raises(SystemExit) as end:
            ssql(
                "evaluate", "--encoders.mine", pretrained, "--output", tmp_path / "out", "--data", "AudioFolder",
                "--data.root", tmp_path / "data", "--data.layout", layout,
            )  # fmt: skip
        assert sentence in str(end.value.code)


def test_names_of_sound_are_lower_case_endings():
    assert all(re.fullmatch(r"\.[a-z0-9]+", name) for name in AUDIO_NAMES)
    assert not set(READ) & set(NOT_READ)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
