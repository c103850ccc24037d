import logging
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
    with pytest.raises(ValueError, match=r"manifest row 2: pitch \(Hz\) is 'high', not a number"):
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
    with pytest.raises(ValueError, match="has no .wav, .flac, .ogg file"):
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
