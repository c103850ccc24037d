"""Checkpoints that are whole or not there: full disks, damaged files, which one a run goes on from."""

import os

import pytest
import torch

from ssql.training.checkpoint_files import LAST, NEW, PREVIOUS, WholeCheckpoints, is_whole, newest_whole, rotate


def write(folder, name, step):
    WholeCheckpoints().save_checkpoint({"global_step": step, "weights": torch.randn(5000)}, folder / name)


def step_of(path):
    return WholeCheckpoints().load_checkpoint(path)["global_step"]


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_part_of_a_new_one(tmp_path, small_disk):
    whole = {"global_step": 1}
    WholeCheckpoints().save_checkpoint(whole, tmp_path / LAST)
    with pytest.raises(OSError, match=r"last\.ckpt could not be written \(File too large\); earlier .* are whole"):
        write(tmp_path, LAST, 2)
    assert os.listdir(tmp_path) == [LAST]
    assert step_of(tmp_path / LAST) == 1


def test_an_error_while_flushing_leaves_nothing(tmp_path, monkeypatch):
    def no_space(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path, LAST, 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "missing"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, damage, caplog):
    write(tmp_path, LAST, 1)
    write(tmp_path, NEW, 2)
    rotate(tmp_path)
    assert newest_whole(tmp_path) == tmp_path / LAST
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (2, 1)
    content = bytearray((tmp_path / LAST).read_bytes())
    if damage == "missing":
        (tmp_path / LAST).unlink()
    else:
        content[len(content) // 2] ^= 1
        kept = {"empty": 0, "short": len(content) // 2, "flipped": len(content)}[damage]
        (tmp_path / LAST).write_bytes(content[:kept])
    found = newest_whole(tmp_path)
    assert (found, step_of(found)) == (tmp_path / PREVIOUS, 1)
    state = "missing" if damage == "missing" else "damaged"
    assert f"last.ckpt is {state}: going on from previous.ckpt, which is older" in caplog.text


def test_a_kill_between_the_renames_leaves_the_newest(tmp_path):
    write(tmp_path, LAST, 1)
    write(tmp_path, NEW, 2)
    assert step_of(newest_whole(tmp_path)) == 2
    os.replace(tmp_path / LAST, tmp_path / PREVIOUS)
    assert step_of(newest_whole(tmp_path)) == 2


def test_a_checkpoint_of_an_earlier_version_is_found_and_none_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume: .* holds no checkpoint"):
        newest_whole(tmp_path)
    (tmp_path / LAST).write_bytes(b"")
    with pytest.raises(ValueError, match=r"nothing to resume: no checkpoint in .* is whole \(last\.ckpt\)"):
        newest_whole(tmp_path)
    write(tmp_path, "step-2.ckpt", 2)
    assert step_of(newest_whole(tmp_path)) == 2


def test_folders_of_several_processes_take_their_turns(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / NEW).mkdir()
        (tmp_path / NEW / ".metadata").write_text("x")
        (tmp_path / NEW / "__0_0.distcp").write_text(str(step))
        assert not is_whole(tmp_path / NEW)
        (tmp_path / NEW / "meta.pt").write_text("x")
        rotate(tmp_path)
    read = {path.name: (path / "__0_0.distcp").read_text() for path in tmp_path.iterdir()}
    assert read == {LAST: "3", PREVIOUS: "2"}
    assert newest_whole(tmp_path) == tmp_path / LAST
