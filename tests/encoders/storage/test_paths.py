import json
import os

from encoders.storage.paths import kind_of, nearest_folder, shown


def test_names_that_are_not_utf_8_can_be_written_anywhere():
    name = os.fsdecode(b"caf\xe9.wav")
    assert shown(name) == r"caf\xe9.wav"
    assert json.dumps(shown(name), ensure_ascii=False).encode() == rb'"caf\\xe9.wav"'
    assert shown("größe.wav") == "größe.wav"


def test_kinds(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert kind_of(tmp_path / "file") is None
    assert kind_of(tmp_path / "link") is None
    assert kind_of(tmp_path) == "a folder"
    assert kind_of(tmp_path / "loop").startswith("out of reach")
    assert kind_of(tmp_path / "none") == "missing"
    assert kind_of(type(tmp_path)("/dev/null")) == "a device"


def test_the_nearest_folder(tmp_path):
    (tmp_path / "runs" / "words" / "encoder").mkdir(parents=True)
    (tmp_path / "runs" / "word.txt").write_text("")
    assert nearest_folder(tmp_path / "runs" / "word") == tmp_path / "runs" / "words"
    assert nearest_folder(tmp_path / "run" / "words" / "encoder") == tmp_path / "runs"
    assert nearest_folder(tmp_path / "runs" / "zzz") is None
