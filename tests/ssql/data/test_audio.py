import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from ssql.data import AudioFolder, SpokenWords
from ssql.data.espeak import Utterance, synthesize

TONE = 0.1 * np.sin(np.arange(16_000) / 5).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for speaker in ("ann", "bob"):
        (tmp_path / speaker).mkdir()
        for index, (ending, rate) in enumerate([("wav", 8_000), ("flac", 16_000), ("ogg", 44_100)]):
            soundfile.write(tmp_path / speaker / f"{index}_{speaker}.{ending}", TONE, rate)
    return tmp_path


def test_folder_names_are_labels_and_everything_is_16_khz(folder):
    data = AudioFolder(str(folder), test_pattern="^bob/2", batch_size=2)
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (5, 1)
    assert data.classes == {"class": ["ann", "bob"]}
    lengths = [len(data.dataset("train")[i]["inputs"]) for i in range(5)]
    assert lengths == [32_000, 16_000, 5_805, 32_000, 16_000]
    batch = next(iter(data.evaluation_dataloader("train")))
    assert batch["inputs"].shape == (2, 32_000)
    assert batch["lengths"].tolist() == [32_000, 16_000]
    assert (batch["inputs"][1, 16_000:] == 0).all()


def test_named_groups_are_tasks_and_long_files_are_cut(folder):
    data = AudioFolder(str(folder), labels=r"(?P<digit>\d)_(?P<speaker>[a-z]+)", test_pattern="2_", max_seconds=0.75)
    data.setup()
    assert data.classes == {"digit": ["0", "1", "2"], "speaker": ["ann", "bob"]}
    assert len(data.dataset("train")) == 2 * (3 + 2)


def test_a_manifest_column_with_a_unit_is_a_number(folder):
    manifest = folder / "m.csv"
    manifest.write_text("path,split,pitch (Hz),word\nann/0_ann.wav,train,210.5,a\nbob/1_bob.flac,test,90,b\n")
    data = AudioFolder(str(folder), labels=str(manifest))
    batch = next(iter(data.evaluation_dataloader("test")))
    assert (data.classes, data.targets) == ({"word": ["a", "b"]}, {"pitch": "Hz"})
    assert (batch["labels"]["pitch"].tolist(), batch["labels"]["word"].tolist()) == ([90.0], [1])
    manifest.write_text("path,pitch (Hz)\nann/0_ann.wav,high\n")
    with pytest.raises(ValueError, match=r"m\.csv row 2: pitch \(Hz\) is 'high', not a finite number"):
        AudioFolder(str(folder), labels=str(manifest)).setup()


def test_manifest_gives_labels_splits_and_rates(folder):
    rows = ["path,split,sample_rate,word", "ann/0_ann.wav,train,8000,a", "bob/1_bob.flac,test,16000,b"]
    manifest = folder / "m.csv"
    manifest.write_text("\n".join(rows))
    data = AudioFolder(str(folder), labels=str(manifest))
    data.setup()
    assert data.classes == {"word": ["a", "b"]}
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (1, 1)
    for text, message in (
        ("path,sample_rate\nann/0_ann.wav,16000", "row 2: .*has 8000 Hz, the manifest says 16000 Hz"),
        ("path\nann/none.wav", "row 2: .*none.wav does not exist"),
        ("file\nx", "needs a header with the column path"),
        ("path,split\nann/0_ann.wav,dev", "split is 'dev', not train or test"),
    ):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=message):
            AudioFolder(str(folder), labels=str(manifest)).setup()


def test_bad_files_are_skipped_and_counted(folder, caplog):
    (folder / "ann" / "broken.wav").write_bytes(b"not audio")
    soundfile.write(folder / "ann" / "empty.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(folder / "ann" / "silent.wav", np.zeros(8_000, np.float32), 16_000)
    soundfile.write(folder / "ann" / "silent2.wav", np.zeros(8_000, np.float32), 16_000)
    soundfile.write(folder / "ann" / "short.wav", TONE[:399], 16_000)
    soundfile.write(folder / "ann" / "nan.wav", TONE * np.nan, 16_000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        data = AudioFolder(str(folder))
        data.setup()
    assert len(data.dataset("train")) + len(data.dataset("test")) == 6
    for reason in ("1 files (unreadable)", "1 files (zero-length)", "2 files (all silent)", "1 files (not finite)"):
        assert f"skipped {reason}" in caplog.text
    assert "1 files (shorter than one 25 ms frame): ann/short.wav" in caplog.text


def test_folders_and_patterns_that_cannot_work(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        AudioFolder("nowhere").setup()
    with pytest.raises(ValueError, match=r"has no audio file \(.wav, .flac, .ogg, "):
        AudioFolder(str(empty)).setup()
    soundfile.write(empty / "a.wav", np.zeros(8_000), 16_000)
    with pytest.raises(ValueError, match="none of the 1 audio files"):
        AudioFolder(str(empty)).setup()
    with pytest.raises(ValueError, match="no named group"):
        AudioFolder(str(folder), labels=r"\d").setup()
    with pytest.raises(ValueError, match="0_ann.wav does not match labels"):
        AudioFolder(str(folder), labels=r"(?P<x>zz)").setup()
    with pytest.raises(ValueError, match="test_pattern '\\(' is not a regular expression"):
        AudioFolder(str(folder), test_pattern="(")


def test_spoken_words_are_the_same_in_a_new_process_and_balanced():
    data = SpokenWords(train_size=40, test_size=20, batch_size=8)
    total = sum(data.dataset("train")[i]["inputs"].double().sum().item() for i in range(40))
    code = (
        "from ssql.data import SpokenWords; d = SpokenWords(train_size=40, test_size=1).dataset('train');"
        "print(repr(sum(d[i]['inputs'].double().sum().item() for i in range(40))))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == repr(total)
    batch = next(iter(data.evaluation_dataloader("test")))
    assert batch["inputs"].shape[0] == 8
    assert (batch["lengths"] > 1_600).all()
    assert sorted(data.dataset("train").labels["word"]) == list(range(40))
    assert len(data.classes["word"]) == 40
    assert data.classes["language"] == ["en-us", "de", "fr", "es"]


def test_train_and_test_words_are_spoken_differently():
    data = SpokenWords(train_size=8, test_size=8)
    pairs = [(data.dataset("train")[i]["inputs"], data.dataset("test")[i]["inputs"]) for i in range(8)]
    assert all(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


def test_unknown_voices_and_languages_are_errors():
    with pytest.raises(ValueError, match="no voice 'zzq'"):
        list(synthesize([Utterance("one", "zzq")]))
    with pytest.raises(ValueError, match="'' makes no sound"):
        list(synthesize([Utterance("")]))
    with pytest.raises(ValueError, match=r"\['tlh'\] have no numerals here; known are: en-us"):
        SpokenWords(languages=["tlh"])


def test_one_odd_file_stops_no_folder(folder, caplog):
    ann = folder / "ann"
    os.mkfifo(ann / "pipe.wav")
    (ann / "folder.wav").mkdir()
    (ann / "link.wav").symlink_to("nowhere")
    (ann / "loop.wav").symlink_to("loop.wav")
    (ann / "zero.wav").symlink_to("/dev/zero")
    soundfile.write(ann / "half.wav", TONE, 16_000)
    (ann / "half.wav").write_bytes((ann / "half.wav").read_bytes()[:9_000])
    soundfile.write(ann / "fast.wav", TONE, 16_000)
    content = bytearray((ann / "fast.wav").read_bytes())
    content[24:28] = (2_000_000_000).to_bytes(4, "little")
    (ann / "fast.wav").write_bytes(content)
    (ann / os.fsdecode(b"\xff.wav")).write_bytes(b"no sound")
    named = folder / os.fsdecode(b"caf\xe9")
    named.mkdir()
    soundfile.write(ann / "good.wav", TONE, 16_000)
    os.rename(ann / "good.wav", named / os.fsdecode(b"\xfe.wav"))
    data = AudioFolder(str(folder), test_pattern="_bob")
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (4, 3)
    assert data.classes == {"class": ["ann", "bob", r"caf\xe9"]}
    for reason in (
        "a named pipe): ann/pipe.wav",
        "a folder): ann/folder.wav",
        "a link to nothing): ann/link.wav",
        "a device): ann/zero.wav",
        "cut off): ann/half.wav",
        "rate outside 1,000 to 768,000 Hz): ann/fast.wav",
        r"unreadable): ann/\xff.wav",
    ):
        assert f"skipped 1 files ({reason}" in caplog.text
    assert "ann/loop.wav" in caplog.text


def test_few_files_are_enough_for_what_needs_no_test(folder):
    data = AudioFolder(str(folder), batch_size=3)
    assert len(data.dataset("train")) == 6
    assert sum(len(batch["lengths"]) for batch in data.train_dataloader()) == 6
    message = "has 6 usable files, which leave no test split: every tenth file .* at least 10, or mark .* test_pattern"
    with pytest.raises(ValueError, match=message):
        data.evaluation_dataloader("test")
    with pytest.raises(
        ValueError, match=r"6 usable files, and test_pattern 'wav\|flac\|ogg' leaves none for the train"
    ):
        AudioFolder(str(folder), test_pattern="wav|flac|ogg").dataset("train")
    with pytest.raises(ValueError, match="the data have no split 'dev'; they have: train, test"):
        data.dataset("dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,word\n", "needs a header with the column path, and at least one row"),
        (b"", "needs a header with the column path, and at least one row"),
        (b"path,word\nann/0_ann.wav\n", "row 2 has 1 fields, the header has 2: path, word"),
        (b"path,word\n\nann/0_ann.wav,a,b\n", "row 3 has 3 fields, the header has 2: path, word"),
        (b"path,word,word\nann/0_ann.wav,a,b\n", "needs columns with names, all different; it has"),
        (b"path,sample_rate\nann/0_ann.wav,fast\n", "row 2: sample_rate is 'fast', not a whole number of Hz"),
        (b"path,pitch (Hz)\nann/0_ann.wav,nan\n", r"row 2: pitch \(Hz\) is 'nan', not a finite number"),
        (b"path,word\nann/0_ann.wav,gr\xfcn\n", r"m\.csv is not UTF-8: byte 0xfc at offset 26 \(line 2\)"),
        (b'path,word\nann/0_ann.wav,"a\n', "row 2 is not CSV: unexpected end of data"),
        (b"path\nann\n", "row 2: .*ann is a folder, not an audio file"),
        (
            b"path,word\nann/0_ann.wav,a\n",
            "1 usable file, and none of them is in the test split: mark files",
        ),
    ],
)
def test_manifests_that_say_too_little_or_too_much(folder, content, message):
    (folder / "m.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        AudioFolder(str(folder), labels=str(folder / "m.csv")).dataset("test")


def test_a_manifest_with_a_byte_order_mark(folder):
    (folder / "m.csv").write_bytes("path,split,word\nann/0_ann.wav,train,grün\n".encode("utf-8-sig"))
    data = AudioFolder(str(folder), labels=str(folder / "m.csv"))
    assert len(data.dataset("train")) == 1
    assert data.classes == {"word": ["grün"]}


def test_a_group_that_some_files_do_not_have_is_no_label(folder):
    with pytest.raises(ValueError, match=r"file ann/0_ann\.wav gives labels .* no loud: that group is optional"):
        AudioFolder(str(folder), labels=r"(?P<digit>\d)_(?P<loud>loud)?").setup()
