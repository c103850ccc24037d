"""Shards against the folder they were packed from, and against the reader that made their layout known."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zlib

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import webdataset
from PIL import Image
from two_ranks import on_two_ranks

from ssql.data import AudioFolder, AudioShards, ImageFolder, ImageShards

EMPTY = '{"format": 1, "modality": "audio", "classes": {}, "targets": {}, "shards": []}'
KINDS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64")


def noise(samples, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def write(path, samples, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".opus":
        options |= {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, samples, rate, **options)


@pytest.fixture
def folder(tmp_path):
    """24 clips of two speakers, of several lengths, rates and encodings; one of them is longer than a clip may be."""
    for index in range(24):
        kind = KINDS[index % len(KINDS)]
        rate = 48_000 if kind == "opus" else (16_000, 22_050, 8_000)[index % 3]
        path = tmp_path / "folder" / ("ann", "bob")[index % 2] / f"{index:02d}.{kind}"
        write(path, noise((3 + index % 7) * rate // 10, index), rate)
    write(tmp_path / "folder" / "bob" / "99.flac", noise(40_000, 99))
    return tmp_path / "folder"


@pytest.fixture
def shards(folder, ssql):
    pack(ssql, folder)
    return folder.parent / "shards"


def pack(ssql, folder, *words):
    ssql("pack", "--data.root", folder, "--output", folder.parent / "shards", "--shard_mb", 0.1, *words)


def equal(one, two):
    for split in ("train", "test"):
        ours, theirs = one.dataset(split), two.dataset(split)
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a["inputs"], b["inputs"])
            assert {key: a[key] for key in a if key != "inputs"} == {key: b[key] for key in b if key != "inputs"}
        assert one.dataset(split).lengths == two.dataset(split).lengths
    assert (one.classes, one.targets, one.tasks) == (two.classes, two.targets, two.tasks)


def test_clips_labels_and_order_are_those_of_the_folder_in_every_encoding(folder, shards):
    assert len(list(shards.glob("train-*.tar"))) > 2
    equal(AudioShards(str(shards), max_seconds=0.8), AudioFolder(str(folder), max_seconds=0.8))


@pytest.mark.filterwarnings("ignore")  # it leaves the shards open
def test_webdataset_reads_the_shards(folder, shards):
    paths = sorted(map(str, shards.glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    packed = {}
    for sample in samples:
        kind = next(key for key in sample if key in KINDS)
        packed[json.loads(sample["json"])["items"][0]["name"]] = sample[kind]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    assert packed == files


def test_manifests_numbers_and_texts_are_packed(folder, ssql):
    rows = ["path,split,word,pitch (Hz),text"]
    files = sorted(folder.rglob("*.*"))
    for place, path in enumerate(files):
        split = "test" if place % 4 == 0 else "train"
        rows.append(f"{path.relative_to(folder)},{split},w{place % 3},{100 + place}.5,say {place}")
    manifest = folder.parent / "m.csv"
    manifest.write_text("\n".join(rows))
    pack(ssql, folder, "--data.labels", manifest)
    shards = str(folder.parent / "shards")
    common = {"labels": str(manifest), "max_seconds": 0.8}
    equal(AudioShards(shards, max_seconds=0.8), AudioFolder(str(folder), **common))
    equal(AudioShards(shards, max_seconds=0.8, texts="layout"), AudioFolder(str(folder), **common, texts="layout"))
    said = AudioShards(shards, texts="layout").said()
    assert said == AudioFolder(str(folder), labels=str(manifest), texts="layout").said()
    assert AudioShards(shards, texts="layout").dataset("train")[0]["texts"].startswith("say ")


def test_parts_of_one_recording_are_packed_once(tmp_path, ssql):
    write(tmp_path / "kaldi" / "talk.flac", noise(160_000))
    (tmp_path / "kaldi" / "wav.scp").write_text("talk talk.flac\n")
    starts = [f"talk-{place} talk {place / 2:.2f} {place / 2 + 0.45:.2f}\n" for place in range(20)]
    (tmp_path / "kaldi" / "segments").write_text("".join(starts))
    ssql("pack", "--data.root", tmp_path / "kaldi", "--output", tmp_path / "shards")
    equal(AudioShards(str(tmp_path / "shards")), AudioFolder(str(tmp_path / "kaldi")))
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        assert tar.getnames() == ["000000000.flac", "000000000.json"]


def test_images_are_those_of_the_folder(tmp_path, ssql, capsys):
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (12 + index, 10, 3), np.uint8)
                Image.fromarray(pixels).save(
                    tmp_path / "images" / split / name / f"{index}.{'png' if index % 2 else 'jpg'}"
                )
    (tmp_path / "images" / "train" / "cat" / "broken.png").write_bytes(b"no image")
    ssql("pack", "--data", "ImageFolder", "--data.root", tmp_path / "images", "--output", tmp_path / "shards")
    assert "12 train, 6 test images in 2 shards" in capsys.readouterr().out
    for grey in (False, True):
        common = {"image_size": 8, "grey": grey}
        equal(ImageShards(str(tmp_path / "shards"), **common), ImageFolder(str(tmp_path / "images"), **common))
    loader = ImageShards(str(tmp_path / "shards"), batch_size=4, num_workers=1).train_dataloader()
    assert sorted(i for batch in loader for i in batch["indices"].tolist()) == sorted(set(range(12)))
    with pytest.raises(ValueError, match=r"shards holds shards of image, not of audio: take --data ImageShards"):
        AudioShards(str(tmp_path / "shards")).setup()


def test_what_is_left_out_is_counted_and_named_with_its_reason(folder, ssql, capsys, caplog):
    (folder / "ann" / "broken.wav").write_bytes(b"no audio")
    write(folder / "ann" / "silent.wav", np.zeros(8_000, np.float32))
    (folder / "ann" / "half.wav").write_bytes((folder / "bob" / "09.wav").read_bytes()[:2_000])
    pack(ssql, folder)
    out = capsys.readouterr().out
    assert "left out: 1 all silent, 1 cut off, 1 unreadable" in out
    assert "left out 1 file (cut off): ann/half.wav" in caplog.text
    index = json.loads((folder.parent / "shards" / "index.json").read_text())
    assert index["skipped"] == {"unreadable": 1, "cut off": 1, "all silent": 1}
    lines = [path.read_text() for path in (folder.parent / "shards").glob("*.jsonl")]
    assert any('"cut off": ["ann/half.wav"]' in text for text in lines)
    equal(AudioShards(str(folder.parent / "shards")), AudioFolder(str(folder)))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_pack_goes_on_and_ends_with_the_same_bytes(folder, shards, tmp_path, ssql, caplog):
    whole = contents(shards)
    words = ["pack", "--data.root", str(folder), "--shard_mb", "0.1", "--output", str(tmp_path / "killed")]
    slow = (
        "import sys, time\nfrom ssql import cli\nfrom ssql.data.shards import packing\nbefore = packing._write\n"
        "def late(*args):\n    before(*args)\n    time.sleep(30)\n"
        f"packing._write = late\nsys.argv = ['ssql', *{words!r}]\ncli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = contents(tmp_path / "killed")
    assert 1 <= len([name for name in begun if name.endswith(".jsonl")]) < len(whole) // 2
    with pytest.raises(
        ValueError, match="killed is not packed to its end; run the same `ssql pack` again, which goes on"
    ):
        AudioShards(str(tmp_path / "killed")).setup()
    (tmp_path / "killed" / ".test-000000.tar.ssql-tmp").write_bytes(b"half")  # as a kill within a shard leaves it
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.tar")}
    with caplog.at_level(logging.INFO):
        ssql(*words)
    assert "shards are there already, and whole" in caplog.text
    assert contents(tmp_path / "killed") == whole
    assert all(path.stat().st_mtime_ns == date for path, date in dates.items())


def test_a_damaged_shard_is_named_and_made_anew(folder, shards, ssql, caplog, capsys):
    whole = contents(shards)
    path = sorted(shards.glob("train-*.tar"))[1]
    content = bytearray(path.read_bytes())
    first = json.loads(path.with_suffix(".jsonl").read_text().splitlines()[1])
    content[first["offset"] + 200] ^= 1
    path.write_bytes(content)
    data = AudioShards(str(shards), batch_size=4, num_workers=1)
    with pytest.raises(ValueError, match=f"{path.name} is damaged where it holds {first['name']}: run the same"):
        list(data.evaluation_dataloader("train"))
    with caplog.at_level(logging.WARNING):
        pack(ssql, folder)
    assert f"{path.name} is missing or damaged, and is packed anew" in caplog.text
    assert contents(shards) == whole
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: it has [\d,]+ bytes, not [\d,]+; run the same"):
        AudioShards(str(shards)).setup()
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing: run the same `ssql pack` again"):
        AudioShards(str(shards)).setup()
    path.with_suffix(".jsonl").write_text('{"plan"\n')
    capsys.readouterr()
    pack(ssql, folder)
    assert "left out: nothing\n" in capsys.readouterr().out
    assert contents(shards) == whole
    pack(ssql, folder)
    assert "all of them were there, and whole" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", EMPTY, '{"format": 9}', "\x00"])
def test_a_damaged_index_is_made_anew(content, folder, shards, ssql):
    whole = contents(shards)
    (shards / "index.json").write_text(content)
    with pytest.raises(ValueError, match="run the same `ssql pack` again"):
        AudioShards(str(shards)).setup()
    pack(ssql, folder)
    assert contents(shards) == whole


@pytest.mark.parametrize(
    ("before", "after", "hash_says_so"),
    [
        ('"end": ', '"end": 9', True),
        ('"end": ', '"end": 900000000000000000000', True),
        ('"end": ', '"end": 900000000000000000000', False),
        ('"offset": ', '"offset": -', True),
        ('"offset": ', '"offset": -', False),
        ('"name": "', '"name": "x', True),
        ('"crc32": ', '"crc32": 1', True),
    ],
)
def test_numbers_that_no_shard_has_are_damage(before, after, hash_says_so, folder, shards, ssql):
    whole = contents(shards)
    path = shards / "train-000000.jsonl"
    header, *lines = path.read_text().splitlines(keepends=True)
    lines = [line.replace(before, after) for line in lines]
    if not hash_says_so:  # as another program would write them
        crc32 = zlib.crc32("".join(lines).encode())
        header = json.dumps(json.loads(header) | {"crc32": crc32}) + "\n"
    path.write_text(header + "".join(lines))
    with pytest.raises(ValueError, match="train-000000.jsonl is damaged: run the same"):
        AudioShards(str(shards)).setup()
    pack(ssql, folder)
    assert contents(shards) == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-000000.tar", "a stranger's"),
        ("train-000000.jsonl", '{"audio_filepath": "talk.wav"}'),
        ("index.json", '{"shards": [{"name": "chunk-0"}]}'),
        ("other-000000.tar", "a stranger's"),
        (".notes", "a stranger's"),
    ],
)
def test_files_of_others_with_names_of_shards_stay(name, content, folder, ssql):
    (folder.parent / "shards").mkdir()
    (folder.parent / "shards" / name).write_text(content)
    with pytest.raises(SystemExit, match=f"{name} was not written by ssql pack: choose another --output"):
        pack(ssql, folder)
    assert contents(folder.parent / "shards") == {name: content.encode()}


def test_a_tar_file_of_others_beside_the_shards_stays(folder, shards, ssql):
    (shards / "train-000099.tar").write_text("a stranger's")
    with pytest.raises(SystemExit, match="train-000099.tar was not written by ssql pack"):
        pack(ssql, folder)


def test_files_that_changed_are_packed_anew(folder, ssql, caplog, tmp_path):
    """Of the same size, with the same date: their bytes count. What could not be used is looked at again."""
    broken = folder / "ann" / "broken.wav"
    write(folder / "bob" / "50.wav", noise(8_000, 50))
    good = (folder / "bob" / "50.wav").read_bytes()
    broken.write_bytes(b"x" * len(good))
    pack(ssql, folder)
    for path, samples in ((folder / "bob" / "50.wav", noise(8_000, 51)), (broken, noise(8_000, 52))):
        dates = path.stat()
        write(path, samples)
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        caplog.clear()
        pack(ssql, folder)
        assert f"is packed anew, because {path.relative_to(folder)} has changed since" in caplog.text
        equal(AudioShards(str(folder.parent / "shards")), AudioFolder(str(folder)))
    ssql("pack", "--data.root", folder, "--output", tmp_path / "fresh", "--shard_mb", 0.1)
    assert contents(tmp_path / "fresh") == contents(folder.parent / "shards")


def test_equal_names_in_two_folders(tmp_path, ssql):
    """An utterance of train/ that cannot be used says nothing of the one of test/ that has its name."""
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            write(tmp_path / "kaldi" / f"{part}{number}.wav", noise(8_000, number))
        rows = [(f"u{number}", f"{part}{number}.wav") for number in range(count)]
        (tmp_path / "kaldi" / part).mkdir()
        (tmp_path / "kaldi" / part / "wav.scp").write_text("".join(f"{name} {path}\n" for name, path in rows))
        speakers = "".join(f"{name} {part}-{name}\n" for name, _ in rows)
        (tmp_path / "kaldi" / part / "utt2spk").write_text(speakers)
    (tmp_path / "kaldi" / "train0.wav").write_bytes(b"no audio")
    ssql("pack", "--data.root", tmp_path / "kaldi", "--output", tmp_path / "shards")
    equal(AudioShards(str(tmp_path / "shards")), AudioFolder(str(tmp_path / "kaldi")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", "{", "index.json is not JSON"),
        ("index.json", "[]", "index.json is damaged: run the same"),
        ("index.json", '{"format": 9}', "index.json has format 9, this version reads 1: run the same"),
        ("index.json", '{"format": 1, "modality": "audio"}', "index.json is damaged: run the same"),
        ("index.json", EMPTY, "lists no shards"),
        ("train-000000.jsonl", None, "train-000000.jsonl does not exist: run the same"),
        ("train-000000.jsonl", "{}\n{}\n", "train-000000.jsonl is damaged: run the same"),
        ("train-000000.jsonl", '{"items": 2}\n', "train-000000.jsonl is damaged: run the same"),
    ],
)  # fmt: skip
def test_indexes_that_are_not_whole(shards, name, content, message):
    (shards / name).unlink() if content is None else (shards / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        AudioShards(str(shards)).setup()


def test_folders_that_hold_no_shards(tmp_path, folder, shards, ssql):
    with pytest.raises(FileNotFoundError, match="folder of shards .*nowhere does not exist"):
        AudioShards(str(tmp_path / "nowhere")).setup()
    with pytest.raises(
        ValueError,
        match=r"folder holds no shards: there is no index.json; write them with `ssql pack --data.root \S+folder --out",
    ):
        AudioShards(str(folder)).setup()
    with pytest.raises(ValueError, match="has no audio file .*it holds tar files: --data AudioShards reads those"):
        AudioFolder(str(shards)).setup()
    with pytest.raises(SystemExit, match=r"ann was not written by ssql pack: choose another --output"):
        ssql("pack", "--data.root", folder, "--output", folder)
    write(folder / "ann" / "more.wav", noise(8_000))
    before = contents(shards)
    with pytest.raises(
        SystemExit, match="shards holds shards of other files, labels or options: choose another --output"
    ):
        pack(ssql, folder)
    assert contents(shards) == before
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no audio")
    with pytest.raises(SystemExit, match=r"none of the 26 files can be packed \(unreadable"):
        ssql("pack", "--data.root", folder, "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_disk_that_fills_leaves_whole_shards_only(folder, ssql, small_disk):
    """No file beyond 12,000 bytes can be written: the first clips fit into small shards, a later one does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for number in range(2):
        soundfile.write(folder / f"{number}.flac", noise(1_600, number), 16_000)
    words = ("pack", "--data.root", folder, "--output", folder.parent / "shards", "--shard_mb", 0.001)
    with pytest.raises(
        SystemExit, match=r"train-\d+\.tar was not written, and what was there is unchanged: File too large"
    ):
        ssql(*words)
    left = sorted(path.name for path in (folder.parent / "shards").iterdir())
    assert left[:2] == ["train-000000.jsonl", "train-000000.tar"]
    assert "index.json" not in left
    assert [name for name in left if not name.endswith((".tar", ".jsonl"))] == []
    assert {name.split(".")[0] for name in left if name.endswith(".tar")} == {
        name.split(".")[0] for name in left if name.endswith(".jsonl")
    }


def seen_of_rank(rank, folder):
    for name, batches in (("items", {"batch_size": 2}), ("seconds", {"batch_seconds": 1.7})):
        data = AudioShards(str(folder / "shards"), max_seconds=0.8, num_workers=2 if name == "items" else 0, **batches)
        data.trainer = Ranks(rank)
        indices = [batch["indices"].tolist() for batch in data.train_dataloader()]
        assert len(indices) == data.batches_per_epoch(2)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(indices))


class Ranks:
    """What a data module asks of a trainer of two processes."""

    world_size, limit_train_batches = 2, 1.0

    def __init__(self, rank):
        self.global_rank = rank
        self.fit_loop = self.epoch_loop = self.batch_progress = self.total = self
        self.ready = 0


@pytest.mark.parametrize("size", [0.2, 100])
def test_two_processes_see_each_clip_once_also_where_there_is_one_shard(folder, ssql, size):
    ssql("pack", "--data.root", folder, "--output", folder.parent / "shards", "--shard_mb", size)
    assert len(list((folder.parent / "shards").glob("train*.tar"))) == 1 or size < 1
    on_two_ranks(seen_of_rank, folder.parent)
    clips = len(AudioShards(str(folder.parent / "shards"), max_seconds=0.8).dataset("train"))
    for name, whole in (("items", clips // 4 * 4), ("seconds", clips // 2 * 2)):
        ranks = [json.loads((folder.parent / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        assert [len(batch) for batch in ranks[0]] == [len(batch) for batch in ranks[1]]
        seen = [index for rank in ranks for batch in rank for index in batch]
        assert len(seen) == len(set(seen)) == whole


def test_names_of_strangers_lead_nowhere(shards):
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0]["name"] = "../elsewhere-000000.tar"
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json is damaged: run the same"):
        AudioShards(str(shards)).setup()


def test_names_that_are_not_utf_8(tmp_path, ssql):
    for index in range(12):
        write(tmp_path / "folder" / f"{index}.wav", noise(8_000, index))
    os.rename(tmp_path / "folder" / "3.wav", tmp_path / "folder" / os.fsdecode(b"\xff.wav"))
    ssql("pack", "--data.root", tmp_path / "folder", "--output", tmp_path / "shards")
    equal(AudioShards(str(tmp_path / "shards")), AudioFolder(str(tmp_path / "folder")))


@pytest.mark.filterwarnings("ignore")
def test_fine_tuning_on_shards_is_fine_tuning_on_the_folder(folder, shards, pretrained, ssql):
    words = ["finetune", "--encoder", pretrained, "--task", "class", "--bit_width", "w8a8"]
    words += ["--trainer.max_epochs", 1, "--trainer.logger", "false", "--model.precision.test_at", "[w8a8]"]
    for kind, root in (("AudioFolder", folder), ("AudioShards", shards)):
        ssql(*words, "--data", kind, "--data.root", root, "--data.batch_size", 4, "--output", folder.parent / kind)
    one, two = (
        safetensors.torch.load_file(folder.parent / kind / "model" / "model.safetensors")
        for kind in ("AudioFolder", "AudioShards")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
