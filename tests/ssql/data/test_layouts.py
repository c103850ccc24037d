"""Layouts one by one: what their entries say, and what is said of rows that are wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layout_folders import LAYOUTS, TEXTS, kaldi, plain, record

from ssql.data import AudioFolder
from ssql.data.entries import list_entries
from ssql.data.layouts import found_layout, read_layout
from ssql.data.layouts.entry import split_of


def words(folder: Path, layout: str) -> dict:
    """What AudioFolder takes beside the folder."""
    options = LAYOUTS[layout][1]
    return {
        name.removeprefix("--data."): str(folder / value) if value.endswith(".CSV") else value
        for name, value in zip(options[::2], options[1::2], strict=True)
    }


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"folder", "manifest"}))
def test_a_layout_is_found_among_others(layout, tmp_path):
    LAYOUTS[layout][0](tmp_path)
    (tmp_path / "config.json").write_text('{"sample_rate": 16000}')
    (tmp_path / "metadata.csv").write_text("LJ001-0001|Printing|printing\n")  # LJSpeech: no file_name
    (tmp_path / "notes.tsv").write_text("a\tb\n")
    assert found_layout(tmp_path) == layout
    assert len(read_layout(tmp_path)) == 12
    plain(tmp_path / "plain")
    assert found_layout(tmp_path / "plain") == "folder"


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"folder"}))
def test_texts_splits_and_speakers(layout, tmp_path):
    LAYOUTS[layout][0](tmp_path)
    data = AudioFolder(str(tmp_path), **words(tmp_path, layout), texts="layout")
    assert data.classes == {} or data.setup()
    for split in ("train", "test"):
        dataset = data.dataset(split)
        said = [text.lower().removesuffix(" sagt sie").strip('"') for text in dataset.texts]
        assert said == [*TEXTS, *TEXTS]
        assert dataset.labels["speaker"] == [0, 0, 0, 1, 1, 1]
    assert data.classes["speaker"] == ["anna", "ben"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clips_from_disk_have_the_bits_of_those_in_memory(layout, tmp_path):
    LAYOUTS[layout][0](tmp_path)
    options = words(tmp_path, layout) | {"max_seconds": 0.2}
    held = AudioFolder(str(tmp_path), **options).dataset("train")
    read = AudioFolder(str(tmp_path), **options, cache_gib=0).dataset("train")
    assert held.lengths == read.lengths == [len(clip) for clip in held.inputs]
    assert all(clip is not None for clip in held.inputs.held)
    assert all(clip is None for clip in read.inputs.held)
    for index in range(len(held)):
        assert held[index]["inputs"].equal(read[index]["inputs"])
        assert held[index]["labels"] == read[index]["labels"]


def test_segments_are_the_parts_they_name(tmp_path):
    kaldi(tmp_path)
    entries = {entry.name + str(entry.split): entry for entry in list_entries(tmp_path)}
    entry = entries["ben-2train"]
    assert (entry.start, entry.end, entry.text) == (0.25, 0.375, "grün")
    assert entry.path == tmp_path / "audio" / "train-ben.wav"
    dataset = AudioFolder(str(tmp_path)).dataset("train")
    whole = AudioFolder(str(tmp_path / "audio"), labels=None, test_pattern="test").dataset("train")
    assert dataset[5]["inputs"].equal(whole[1]["inputs"][4_000:6_000])


def test_several_may_speak_in_one_part_of_a_recording(tmp_path):
    record(tmp_path / "a.wav", "anna")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "segments").write_text("anna-1 a 0 0.5\nben-1 a 0 0.5\n")
    (tmp_path / "utt2spk").write_text("anna-1 anna\nben-1 ben\n")
    assert [entry.labels["speaker"] for entry in read_layout(tmp_path)] == ["anna", "ben"]
    (tmp_path / "segments").unlink()
    (tmp_path / "wav.scp").write_text("a a.wav\nb a.wav\n")
    with pytest.raises(ValueError, match="a.wav is listed already"):
        read_layout(tmp_path)


def test_metadata_may_lie_in_folders_of_any_depth(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "data" / split / "part"
        record(folder / "a.wav", "anna")
        (folder / "metadata.csv").write_text("file_name,speaker\na.wav,anna\n")
    entries = read_layout(tmp_path)
    assert [(entry.name, entry.split) for entry in entries] == [
        ("data/test/part/a.wav", "test"), ("data/train/part/a.wav", "train")
    ]  # fmt: skip
    assert {entry.labels["speaker"] for entry in entries} == {"anna"}


def test_names_of_splits():
    names = ("train", "train-clean-100", "Training", "test.clean", "eval2000", "dev", "validation", "valid_1")
    splits = [*["train"] * 3, *["test"] * 2, *["validation"] * 3]
    assert [split_of(name) for name in names] == splits
    assert [split_of(name) for name in ("trainer", "valentina", "devon", "testa", "validated", "a-train")] == [None] * 6


def test_validation_is_left_out_unless_it_is_all_there_is(tmp_path, caplog):
    caplog.set_level("INFO")
    for subset in ("dev-clean", "train-clean-5"):
        for number in range(10):
            record(tmp_path / subset / "anna" / "1" / f"anna-1-{number}.wav", "anna")
        (tmp_path / subset / "anna" / "1" / "anna-1.trans.txt").write_text("anna-1-0 JA\nanna-1-77 NEIN\n")
    assert {entry.split for entry in list_entries(tmp_path)} == {"train"}
    assert "left out 10 recordings of the validation split" in caplog.text
    assert "18 recordings have no line in a transcript: dev-clean/anna/1/anna-1-1.wav, " in caplog.text
    assert "anna-1-77" in caplog.text
    with pytest.raises(ValueError, match="layout has no text for 9 of 10 audio files, the first of them train-clean"):
        list_entries(tmp_path, texts="layout", test_pattern=None)
    (tmp_path / "train-clean-5").rename(tmp_path / "dev-other")
    splits = [entry.split for entry in list_entries(tmp_path)]
    assert splits.count("test") == 2


def test_what_no_manifest_lists_is_named_and_what_lies_elsewhere_too(tmp_path, caplog):
    caplog.set_level("INFO")
    away = record(tmp_path / "away" / "b.wav", "ben")
    root = tmp_path / "root"
    record(root / "a.wav", "anna")
    record(root / "deep" / "c.m4a.wav", "anna")
    rows = [{"audio_filepath": "a.wav"}, {"audio_filepath": str(away)}]
    (root / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_layout(root)) == 2
    assert "left out 1 audio files that the nemo manifest does not list: deep/c.m4a.wav" in caplog.text
    assert f"1 audio files lie outside of {root}: {away}" in caplog.text


@pytest.mark.parametrize("first", ["\n", "\r\n", "\ufeff\n", "  \n\n"])
def test_a_manifest_that_begins_with_an_empty_line(first, tmp_path):
    record(tmp_path / "a.wav", "anna")
    (tmp_path / "all.jsonl").write_text(first + '{"audio_filepath": "a.wav", "speaker": "anna"}\n', encoding="utf-8")
    assert read_layout(tmp_path)[0].labels == {"speaker": "anna"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name;x\na.wav;1\n"),
        ("all.jsonl", '{"audio_filepath": "a.wav"\n'),
        ("all.json", "[" * 100_000),
        ("all.json", '{"audio_filepath": "a.wav", "duration": ' + "9" * 5_000 + "}\n"),
    ],
)
def test_a_manifest_that_is_none_is_named_where_a_plain_folder_is_read(name, content, tmp_path, ssql, caplog):
    record(tmp_path / "folder" / "a.wav", "anna")
    (tmp_path / "folder" / name).write_text(content)
    with caplog.at_level("INFO"):
        ssql("pack", "--data.root", tmp_path / "folder", "--output", tmp_path / "shards")
    assert f"is read as a plain folder; these are no manifests of a known layout: {name}" in caplog.text


def test_a_file_in_place_of_a_folder_is_said(tmp_path, ssql):
    record(tmp_path / "a.wav", "anna")
    for labels in ("layout", "labels.csv"):
        with pytest.raises(SystemExit, match=r"a\.wav is a file: give the folder that it lies in"):
            ssql("pack", "--data.root", tmp_path / "a.wav", "--data.labels", labels, "--output", tmp_path / "shards")


WRONG = [
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav"}\n{"audio_filepath": \n', r"m\.jsonl row 2 is not JSON"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav"}\n[1]\n', r"m\.jsonl row 2 is not a JSON object"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav"}\n{"text": "x"}\n', r"m\.jsonl row 2 has no audio_filepath"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav", "text": "\\ud83d"}\n', r"row 1 holds half of a character, like"),
    ("nemo", "m.jsonl", '{"audio_filepath": "b.wav"}\n', r"m\.jsonl row 1: \S*b\.wav does not exist$"),
    ("nemo", "m.jsonl", '{"audio_filepath": "../a.wav"}\n', r"row 1: \.\./a\.wav leads out of"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav"}\n' * 2, r"row 2: \S*a\.wav is listed already, in \S*jsonl row 1"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav", "offset": 1}', r"row 1: duration is None, not a number of sec"),
    ("nemo", "m.jsonl", '{"audio_filepath": "a.wav", "offset": "x"}', r"row 1: offset is 'x', not a number of seconds"),
    ("huggingface", "metadata.csv", "file_name,x\na.wav,1\nb.wav,1\nc.wav,1\n",
     r"metadata\.csv row 3: \S*b\.wav does not exist; so it is with 1 more row$"),
    ("huggingface", "metadata.csv", "file_name,x\na.wav\n", r"metadata\.csv row 2 has 1 fields, the header has 2"),
    ("huggingface", "metadata.CSV", "file_name\n../../x.wav\n", r"metadata\.CSV row 2: \.\./\.\./x\.wav leads out of"),
    ("huggingface", "metadata.jsonl", '{"file_name": "a.wav"}\n{"file": 1}', r"metadata\.jsonl row 2 has no file_name"),
    ("common_voice", "train.tsv", "client_id\tpath\tsentence\nanna\ta.wav\n", r"train\.tsv row 2 has 2 fields, the"),
    ("common_voice", "train.tsv", "client_id\tpath\tsentence\nanna\t\tja\n", r"train\.tsv row 2 names no file"),
    ("kaldi", "wav.scp", "a sox a.wav -t wav - |\n", r"wav\.scp row 1 is a command, which is never run here"),
    ("kaldi", "wav.scp", "a a.wav\na a.wav\n", r"wav\.scp row 2: a is listed already, in \S*wav\.scp row 1"),
    ("kaldi", "wav.scp", "a\n", r"wav\.scp row 1 has a name alone"),
    ("kaldi", "wav.scp", "a /etc\n", r"wav\.scp row 1: /etc is a folder, not an audio file"),
    ("librispeech", "a/b/a-b.trans.txt", "a-b-0\n", r"a-b\.trans\.txt row 1 has no text behind its name"),
    ("librispeech", "a/b/a-b.trans.txt", "a-b-0 X\na-b-0 Y\n", r"a-b\.trans\.txt row 2 gives a-b-0 a second text"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name", "content", "message"), WRONG)
def test_wrong_rows_are_named_by_file_and_row(layout, name, content, message, tmp_path):
    for place in ("a.wav", "clips/a.wav", "a/b/a-b-0.wav"):
        record(tmp_path / place, "anna")
    (tmp_path / name).write_text(content)
    assert found_layout(tmp_path) == layout
    with pytest.raises(ValueError, match=message):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("u1 a 0.0\n", r"segments row 1 is not UTTERANCE RECORDING START END"),
        ("u1 b 0.0 0.1\n", r"segments row 1 is not UTTERANCE RECORDING START END with a recording of wav\.scp: b 0"),
        ("u1 a 0.3 0.1\n", r"segments row 1: the segment ends at 0\.1 s, before it starts at 0\.3 s"),
        ("u1 a -1 0.1\n", r"segments row 1: start is '-1', not a number of seconds"),
        (
            "u1 a 0.0 0.1\nu2 a 0.2 9.0\n",
            r"segments row 2: \S*a\.wav has 0\.50 s, the row names a part from 0\.2 to 9",
        ),
    ],
)
def test_wrong_segments_are_named(rows, message, tmp_path):
    record(tmp_path / "a.wav", "anna")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "segments").write_text(rows)
    with pytest.raises(ValueError, match=message):
        AudioFolder(str(tmp_path)).setup()


def test_commands_are_never_run(tmp_path):
    record(tmp_path / "a.wav", "anna")
    (tmp_path / "wav.scp").write_text(f"a a.wav\nb touch {tmp_path}/ran; cat {tmp_path}/a.wav |\n")
    with pytest.raises(ValueError, match="row 2 is a command, which is never run"):
        AudioFolder(str(tmp_path)).setup()
    assert not (tmp_path / "ran").exists()


def test_a_manifest_is_utf_8_whatever_the_locale(tmp_path):
    LAYOUTS["huggingface"][0](tmp_path)
    code = (
        "import locale, sys; from pathlib import Path; from ssql.data.layouts import read_layout;"
        "print(ascii(sorted({entry.text for entry in read_layout(Path(sys.argv[1]))})))"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == r"['gr\xfcn', 'ja', 'nein']"
