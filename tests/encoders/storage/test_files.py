"""Files and folders that appear whole or not at all, and whose they are."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from encoders import check_folder_target
from encoders.storage import files, ownership
from encoders.storage.files import (
    sole_writer,
    staged_file,
    staged_folder,
    staged_pair,
    utf8,
    write_json,
    write_together,
)


def listing(folder):
    """Every name below a folder, and the content of every file."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def anything(folder):
    """No check of what is to be replaced."""


def test_a_file_takes_its_name_when_it_is_finished_and_not_before(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with staged_file(target) as staging:
        staging.write_text("first")
        assert not target.exists()
    assert listing(tmp_path) == {"new": None, "a.txt": b"first"}
    with pytest.raises(KeyboardInterrupt), staged_file(target) as staging:
        staging.write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == {"new": None, "a.txt": b"first"}
    write_together({target: utf8("second, ä, \udcff")})
    assert target.read_bytes() == "second, ä, \\udcff".encode()


def test_two_files_take_their_names_together_and_an_old_second_one_goes(tmp_path, monkeypatch):
    target, second = tmp_path / "a.onnx", tmp_path / "a.onnx.data"

    def write(*contents):
        with staged_pair(target, second) as staging:
            for path, content in zip((staging, staging.with_name(second.name)), contents, strict=False):
                path.write_bytes(content)
            assert staging.name == target.name  # what one says of the other is right before and after

    write(b"1", b"2")
    assert listing(tmp_path) == {"a.onnx": b"1", "a.onnx.data": b"2"}
    write(b"3", b"4")
    assert listing(tmp_path) == {"a.onnx": b"3", "a.onnx.data": b"4"}
    with pytest.raises(KeyboardInterrupt), staged_pair(target, second) as staging:
        staging.write_bytes(b"half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == {"a.onnx": b"3", "a.onnx.data": b"4"}
    # Killed between the two renamings: no file stands beside weights that are not its own.
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, to: replace(source, to) if to == str(second) else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(b"5", b"6")
    assert listing(tmp_path) == {"a.onnx.data": b"6"}
    monkeypatch.undo()
    write(b"7")
    assert listing(tmp_path) == {"a.onnx": b"7"}
    second.symlink_to(target)
    with pytest.raises(FileExistsError, match=r"a\.onnx\.data is a symbolic link"):
        write(b"8", b"9")


def test_a_relative_name_and_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_together({Path("a.txt"): utf8("a")})
    assert listing(tmp_path) == {"a.txt": b"a"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with staged_folder(".", anything) as staging:
        write_together({staging / "b.txt": utf8("b")})
    assert listing(tmp_path) == {"a.txt": b"a", "empty": None, "b.txt": b"b"}


def test_json_is_json_in_utf_8(tmp_path):
    path = tmp_path / "a.json"
    value = {"ä": [1.5, float("nan"), (float("inf"), 2)], "b": {"c": -float("inf"), "d": "\udcff"}}
    write_json(value, path)

    def no_constant(name):
        raise AssertionError(name)

    read = json.loads(path.read_bytes().decode("utf-8"), parse_constant=no_constant)
    assert read == {"ä": [1.5, None, [None, 2]], "b": {"c": None, "d": "\udcff"}}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_named_and_changes_nothing(kind, small_disk, tmp_path):
    target = tmp_path / "target"
    if kind == "file":
        target.write_bytes(b"old")
        before = listing(tmp_path)
        with pytest.raises(OSError, match="target was not written, and what was there is unchanged: File too large"):
            write_together({target: bytes(10_001)})
    else:
        target.mkdir()
        (target / "old").write_bytes(b"old")
        before = listing(tmp_path)
        with (
            pytest.raises(OSError, match=r"/target was not written, and what was there is unchanged: File too large"),
            staged_folder(target, anything) as staging,
        ):
            write_together({staging / "new": bytes(10_001)})
    assert listing(tmp_path) == before


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link.json").symlink_to(tmp_path / "mine")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.json")
    before = sorted(os.listdir(tmp_path))
    for name, message in {
        "folder.json": "folder.json is a folder",
        "link.json": "link.json is a symbolic link",
        "dangling.json": "dangling.json is a symbolic link",
        "pipe.json": "pipe.json is not a regular file",
        "mine/a.json": r"mine/a.json cannot be written: .*mine is not a folder",
    }.items():
        with pytest.raises(OSError, match=message):
            write_together({tmp_path / name: utf8("text")})
        with pytest.raises(OSError, match=message):
            ownership.refuse_foreign(tmp_path / name, ownership.RESULTS)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "mine").read_text() == "mine"


# encoders.files without the packages that `import encoders` would load.
IMPORT = f"import os, runpy, sys\nglobals().update(runpy.run_path({files.__file__!r}))\n"
# Holds a target until its input ends.
WRITER = f"""{IMPORT}
with (staged_folder(sys.argv[2], lambda _: None) if sys.argv[1] == "folder" else staged_file(sys.argv[2])) as staging:
    (staging / "a" if sys.argv[1] == "folder" else staging).write_text("theirs")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_writer_is_told_and_leftovers_of_a_killed_one_go(kind, tmp_path):
    target = tmp_path / "target"

    def write():
        with staged_folder(target, anything) if kind == "folder" else staged_file(target) as staging:
            (staging / "a" if kind == "folder" else staging).write_text("ours")

    def started():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        other = subprocess.Popen([sys.executable, "-c", WRITER, kind, str(target)], text=True, **pipes)
        assert other.stdout.readline() == "writing\n"
        return other

    with started() as other:
        with pytest.raises(BlockingIOError, match=f"another process is writing {target}"):
            write()
        files.remove_leftovers(tmp_path)  # not what is being written
        assert (tmp_path / ".target.ssql-tmp").exists()
        other.communicate()
    assert (target / "a" if kind == "folder" else target).read_text() == "theirs"
    with started() as other:
        other.send_signal(signal.SIGKILL)
    assert set(os.listdir(tmp_path)) == {"target", ".target.ssql-tmp", ".target.ssql-lock"}
    write()
    assert os.listdir(tmp_path) == ["target"]
    assert (target / "a" if kind == "folder" else target).read_text() == "ours"
    with started() as other:
        other.send_signal(signal.SIGKILL)
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["target"]


def test_writers_in_turn_never_meet(tmp_path):
    """Many processes, each for its moment the only one: none sees another's half, none believes to be alone wrongly."""
    program = f"""{IMPORT}
path, done = sys.argv[1], 0
while done < 200:
    try:
        with sole_writer(path):
            open(path + "-inside", "x").close()
            os.unlink(path + "-inside")
        done += 1
    except BlockingIOError:
        pass
"""
    others = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a")]) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_together({tmp_path / "a.txt": utf8("a")})
    (tmp_path / ".b.txt.ssql-tmp").write_text("of somebody who may still be writing")
    files.remove_leftovers(tmp_path)
    with sole_writer(tmp_path / "c") as locked:
        assert not locked
    assert sorted(os.listdir(tmp_path)) == [".b.txt.ssql-tmp", "a.txt"]


@pytest.mark.parametrize("stage", ["before", "between", "after"])
def test_an_exchange_of_folders_that_was_killed_is_put_right(stage, tmp_path):
    folder, old = tmp_path / "model", tmp_path / ".model.ssql-old"
    for path, text in ((folder, "new"), (old, "old")):
        path.mkdir()
        (path / "a").write_text(text)
    if stage == "before":
        old.joinpath("a").unlink()
        old.rmdir()
    if stage == "between":
        folder.rename(tmp_path / ".model.ssql-tmp")
    seen = []

    def check(path):
        seen.append((path / "a").read_text())

    with pytest.raises(RuntimeError, match="stop"), staged_folder(folder, check):
        raise RuntimeError("stop")
    assert seen == ["old" if stage == "between" else "new"]
    assert listing(tmp_path) == {"model": None, "a": seen[0].encode()}


def test_a_folder_that_gets_something_while_its_successor_is_made_is_kept(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()

    def check(path):
        if (path / "notes.txt").exists():
            raise FileExistsError("notes.txt")

    with pytest.raises(FileExistsError), staged_folder(folder, check) as staging:
        (staging / "a").write_text("new")
        (folder / "notes.txt").write_text("mine")
    assert listing(tmp_path) == {"model": None, "notes.txt": b"mine"}


def test_ours_is_what_says_so(tmp_path):
    row = {"method": "a", "task": "b", "bit_width": "fp", "metric": "linear", "value": 1.0}
    other = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), opset_imports=[])
    ours = onnx.helper.make_model(onnx.helper.make_graph([], "g" * 300, [], []), opset_imports=[])
    onnx.helper.set_model_props(other, {"framework": "other"})
    onnx.helper.set_model_props(ours, {"a": "b", "ssql_toolkit_version": "0.1.0"})
    features = json.dumps({"__metadata__": {"encoder": "e", "audio": "a", "frame_rate_hz": "50"}}).encode()
    weights = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()

    def safetensors(header):
        return len(header).to_bytes(8, "little") + header

    cases = {
        ("a.json", ownership.RESULTS): (json.dumps([row]), json.dumps([{"method": "mine"}])),
        ("b.json", ownership.LATENCIES): (
            json.dumps([{"file": "a", "size_bytes": 1, "threads": 1, "seconds": 1, "latency_ms": 1}]),
            json.dumps([row]),
        ),
        ("config.json", ownership.CARD): (
            json.dumps({"encoder": {}, "input": "waveform", "head": None, "files": []}),
            json.dumps({"encoder": "a", "arguments": {}, "format_version": 3}),
        ),
        ("a.csv", ownership.RESULTS): ("method,task,bit_width,metric,value,low\n", "method,value\n"),
        ("a.md", ownership.TABLE): ("# a\n" + ownership.mark(ownership.TABLE), "# ssql-toolkit\n"),
        ("README.md", ownership.CARD): ("# a\n" + ownership.mark(ownership.CARD), ownership.mark(ownership.TABLE)),
        ("a.html", ownership.PAGE): ('<meta name="generator" content="ssql-toolkit">', "<html>ssql-toolkit</html>"),
        ("a.onnx", ownership.ONNX): (ours.SerializeToString(), other.SerializeToString()),
        ("b.onnx", ownership.ONNX): (ours.SerializeToString(), b"ssql_toolkit_version"),
        ("a.onnx.data", ownership.ONNX_DATA): (ownership.ONNX_DATA_MARK + b"\0", b"weights of an ONNX file"),
        ("a.safetensors", ownership.FEATURES): (safetensors(features), safetensors(weights)),
        ("b.safetensors", ownership.FEATURES): (safetensors(features), b"\xff" * 20),
    }
    for (name, kind), contents in cases.items():
        path = tmp_path / name
        good, bad = (content.encode() if isinstance(content, str) else content for content in contents)
        path.write_bytes(good)
        ownership.refuse_foreign(path, kind)
        path.write_bytes(bad)
        with pytest.raises(FileExistsError, match=f"{name} (was not|holds) .* and would be replaced by {kind}"):
            ownership.refuse_foreign(path, kind)
        path.write_bytes(b"")
        ownership.refuse_foreign(path, kind)


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"a.json cannot be written: no permission to write in {tmp_path}"):
        write_together({tmp_path / "a.json": utf8("a")})


def test_two_dots_are_the_folder_above_whatever_the_system_sees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    # No `out` is there: to the system `out/../mine` is nothing.
    with pytest.raises(FileExistsError, match="mine holds what is not of an encoder"):
        check_folder_target("out/../mine", overwrite=True)
    seen = []
    with staged_folder("out/../mine", seen.append) as staging:
        (staging / "new.txt").write_text("new")
    assert [os.path.normpath(folder) for folder in seen] == ["mine", "mine"] == [str(folder) for folder in seen]
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"notes\.json was not written by ssql"):
        ownership.refuse_foreign(tmp_path / "out" / ".." / "notes.json", ownership.RESULTS)
    assert not (tmp_path / "out").exists()
