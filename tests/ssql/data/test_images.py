import gzip
import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import quant
from encoders import VisionEncoder, save_encoder
from ssql.data import Digits, FashionMNIST, ImageFolder
from ssql.data.batch import LabelledTensors, collate


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (40, 32), colour).save(tmp_path / split / label / f"{index}.png")
    return tmp_path


def test_digits_are_split_once_and_for_all():
    data = Digits()
    train, test = data.dataset("train"), data.dataset("test")
    assert (len(train), len(test)) == (1438, 359)
    assert train[0]["inputs"].shape == (1, 8, 8)
    assert 0 <= train.inputs.min() < train.inputs.max() == 1
    assert train.labels == Digits().dataset("train").labels


def test_image_folder_resizes_limits_and_balances(folder):
    data = ImageFolder(str(folder), image_size=16, train_limit=4)
    assert len(data.dataset("train")) == 4
    assert data.dataset("train").labels == {"class": [0, 0, 1, 1]}
    item = data.dataset("test")[0]
    assert item["inputs"].shape == (3, 16, 16)
    assert item["inputs"].amax((1, 2)).tolist() == [1, 0, 0]
    assert ImageFolder(str(folder), grey=True).dataset("test")[0]["inputs"].shape == (1, 32, 32)


def test_unreadable_images_are_skipped_and_bad_folders_are_errors(folder, caplog, tmp_path_factory):
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    assert len(ImageFolder(str(folder)).dataset("train")) == 7
    assert "(no image): train/cat/0.png" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"expected .*/\{train,test\}/CLASS/IMAGE"):
        ImageFolder("nowhere").setup()
    empty = tmp_path_factory.mktemp("empty")
    (empty / "train").mkdir()
    (empty / "test").mkdir()
    with pytest.raises(ValueError, match="holds no images in class folders"):
        ImageFolder(str(empty)).setup()


def test_fashion_mnist_reads_idx_files(tmp_path):
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for prefix in ("train", "t10k"):
        with gzip.open(tmp_path / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, 2, 28, 28) + images.tobytes())
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 2) + bytes([3, 9]))
    item = FashionMNIST(str(tmp_path)).dataset("test")[1]
    assert item["labels"] == {"class": 9}
    assert np.allclose(item["inputs"].numpy() * 255, images[1:2])
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(FileNotFoundError, match="must hold the IDX files"):
        FashionMNIST("nowhere").setup()


def test_images_come_as_a_whole_batch_equal_to_their_items():
    data = LabelledTensors(torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8), {"class": list(range(7))})
    batch, items = collate(data.__getitems__([5, 0, 3])), collate([data[index] for index in (5, 0, 3)])
    assert torch.equal(batch["inputs"], items["inputs"])
    assert batch["labels"]["class"].tolist() == items["labels"]["class"].tolist() == [5, 0, 3]
    assert torch.equal(batch["indices"], items["indices"])
    assert batch["lengths"] is items["lengths"] is None


def test_what_is_not_read_is_counted_and_named(folder, caplog, monkeypatch):
    cat, dog, train = folder / "train" / "cat", folder / "train" / "dog", folder / "train"
    os.mkfifo(cat / "pipe.png")
    (cat / "link.png").symlink_to("nowhere")
    (cat / "round").symlink_to(train, target_is_directory=True)
    (cat / ".hidden").write_text("of a program")
    for name in ("a.heic", "b.HEIC", "c.heic", "d.heic", "0.png.part", "label"):
        (cat / name).write_bytes(b"x")
    (dog / os.fsdecode(b"\xff.png")).write_bytes(b"")
    whole = (dog / "0.png").read_bytes()
    (dog / "0.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (400, 400)).save(dog / "bomb.png")
    shutil.copy(cat / "0.png", train / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)
    # By way of cat/round each class is found once more, but not cat in itself.
    data = ImageFolder(str(folder))
    assert data.dataset("train").labels["class"].count(1) == 3
    for line in (
        "4 files of {} (not read as an image: .heic): train/cat/a.heic, train/cat/b.HEIC, train/cat/c.heic ...",
        "1 file of {} (not read as an image: .part): train/cat/0.png.part",
        "1 file of {} (not read as an image: no suffix): train/cat/label",
        "1 file of {} (in no class folder): train/0.png",
        "(a named pipe): train/cat/pipe.png",
        "(a link to nothing): train/cat/link.png",
        "(a link to a folder around it): train/cat/round/cat",
        "(too many pixels): train/cat/round/dog/bomb.png, train/dog/bomb.png",
        "(damaged): train/cat/round/dog/0.png, train/dog/0.png",
        r"(no image): train/cat/round/dog/\xff.png, train/dog/\xff.png",
    ):
        assert line.format(folder) in caplog.text
    assert ".hidden" not in caplog.text


def test_links_to_folders_are_followed(folder, tmp_path_factory, caplog):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "train").symlink_to(folder / "train", target_is_directory=True)
    for name in ("cat", "dog"):
        (linked / "test").mkdir(exist_ok=True)
        (linked / "test" / name).symlink_to(folder / "test" / name, target_is_directory=True)
    data = ImageFolder(str(linked))
    assert [len(data.dataset(split)) for split in ("train", "test")] == [8, 8]
    assert "skipped" not in caplog.text


def test_a_long_and_narrow_image_takes_no_memory(folder):
    Image.new("L", (300_000, 3), 255).save(folder / "test" / "cat" / "0.png")
    assert ImageFolder(str(folder), image_size=256).dataset("test")[0]["inputs"].min() == 1


def test_classes_must_be_the_same_and_there(folder):
    with pytest.raises(ValueError, match="test_limit 1 leaves no image of each of the 2 classes"):
        ImageFolder(str(folder), test_limit=1).setup()
    (folder / "train" / "emu").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "train" / "emu" / "0.png")
    with pytest.raises(ValueError, match="must have the same class folders; in one of them only: emu"):
        ImageFolder(str(folder)).setup()
    (folder / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match="test holds no images in the class folders emu: read are .jpg"):
        ImageFolder(str(folder)).setup()


def test_damaged_idx_files_are_said_to_be(tmp_path):
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 2, 28, 28) + bytes(1568))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes([3, 9, 1]))
    with pytest.raises(ValueError, match="the train IDX files are damaged: .*2 images and 3 labels"):
        FashionMNIST(str(tmp_path)).setup()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="the train IDX files are damaged"):
        FashionMNIST(str(tmp_path)).setup()


def test_16_bit_images_give_a_command_the_numbers_of_8_bits(tmp_path, ssql, caplog):
    torch.manual_seed(1)
    encoder = VisionEncoder("resnet10t", in_channels=1, model_arguments={"stem_width": 8, "channels": [8, 16, 24, 32]})
    save_encoder(quant.prepare(encoder).eval(), tmp_path / "encoder")
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        for bits in (8, 16):
            place = tmp_path / str(bits) / ("test" if index >= 120 else "train") / str(label)
            place.mkdir(parents=True, exist_ok=True)
            values = (pixels * 15).astype(np.uint8 if bits == 8 else np.uint16) * (1 if bits == 8 else 257)
            Image.fromarray(values).save(place / f"{index}.png")
    (tmp_path / "16" / "train" / "0" / "cut.png").write_bytes(b"\x89PNG")
    found = {}
    for bits in (8, 16):
        words = ["--encoders.mine", tmp_path / "encoder", "--data", "ImageFolder", "--data.root", tmp_path / str(bits)]
        words += ["--data.image_size", 8, "--data.grey", "true", "--bit_widths", "[fp]"]
        ssql("evaluate", *words, "--output", tmp_path / f"of_{bits}")
        found[bits] = json.loads((tmp_path / f"of_{bits}" / "accuracy.json").read_text())
    assert found[16] == found[8]
    assert found[8][0]["value"] > 20
    assert "skipped 1 file" in caplog.text and "train/0/cut.png" in caplog.text
