import os

import pytest

from encoders.storage.strict_json import read_strict_json, read_text


def test_utf_8_with_or_without_a_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes('{"name": "größe", "half": 0.5}'.encode())
    assert read_strict_json(file) == {"name": "größe", "half": 0.5}
    file.write_bytes('{"name": "größe"}'.encode("utf-8-sig"))
    assert read_strict_json(file) == {"name": "größe"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.json is not JSON: Expecting value"),
        (b"{", r"a\.json is not JSON"),
        (b'{"width": NaN}', r"a\.json is not JSON: NaN is no number of JSON"),
        (b"[-Infinity]", r"a\.json is not JSON: -Infinity is no number of JSON"),
        (b"[1e999]", r"a\.json is not JSON: 1e999 is beyond every float"),
        (b"1" * 5000, r"a\.json is not JSON: Exceeds the limit"),
        (b'\n\n{"a": "\xe9"}', r"a\.json is not UTF-8: byte 0xe9 at offset 9 \(line 3\); save the file as UTF-8"),
        (rb'["\ud800"]', r"a\.json is not JSON: .*surrogates not allowed"),
        (b"[" * 100_000, r"a\.json is not JSON that can be read: it is nested too deep"),
    ],
)
def test_what_is_not_json_is_said_in_a_sentence(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_strict_json(file)


def test_a_pair_of_halves_is_a_character(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(rb'["\ud83d\ude00"]')
    assert read_strict_json(file) == ["\U0001f600"]


def test_no_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "nowhere.json").symlink_to("missing")
    with pytest.raises(ValueError, match=r"pipe\.json is a named pipe, not a regular file"):
        read_strict_json(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"nowhere\.json is a link to nothing"):
        read_text(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="is a folder, not a regular file"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.json does not exist"):
        read_text(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="out of reach"):
        read_text(tmp_path / "a\0b")


def test_a_huge_file_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("encoders.storage.strict_json.LARGEST", 10)
    (tmp_path / "a.json").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(ValueError, match=r"a\.json has 15 bytes: a JSON file here has at most 10"):
        read_strict_json(tmp_path / "a.json")
