"""Images: scikit-learn's digits, any folder of class folders, Fashion-MNIST."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from torchvision import datasets

from encoders.storage.paths import shown
from quant.checks import check_at_least
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.folder_files import Skipped, files_below
from ssql.data.image_file import SUFFIXES, ImageFileError, read_image, square
from ssql.data.layouts.entry import Entry, relative
from ssql.data.module import DataModule
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

Sample = tuple[Path, int]  # an image and its class


class Digits(DataModule):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, shipped inside its wheel; the split is drawn by the seed."""

    modality = "image"

    def load(self) -> dict[str, Dataset[Batch]]:
        """Every image, a fifth of them for the test."""
        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        self.classes = {"class": [str(name) for name in digits.target_names]}
        labels = torch.from_numpy(digits.target)
        cut = len(images) // 5
        return {
            name: LabelledTensors(images[chosen], {"class": labels[chosen].tolist()})
            for name, chosen in (("train", order[cut:]), ("test", order[:cut]))
        }


class ImageFolder(DataModule):
    """A folder with `train` and `test`, each a folder of class folders; decoded once and kept in memory as uint8.

    Any image that Pillow reads is taken: grey, colour, palette, CMYK; of more than 8 bits or floats it is scaled, EXIF
    turns it upright, transparent parts are white, and of several pictures in a file the first is taken. Links are
    followed. Whatever else lies there is skipped, counted and logged: images that are damaged, cut off or of more than
    179 million pixels, files of other formats, and images in no class folder.

    Args:
        root: the folder.
        image_size: height and width in pixels; of other images the middle is cut out and resized.
        grey: one channel instead of three.
        train_limit: only this many training images, the same number of each class.
        test_limit: the same for the test split.
        common: see `DataModule`.
    """

    modality = "image"

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        grey: bool = False,
        train_limit: int | None = None,
        test_limit: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_at_least(1, image_size=image_size, train_limit=train_limit, test_limit=test_limit)
        self.root, self.image_size, self.grey = Path(root), image_size, grey
        self.limits = {"train": train_limit, "test": test_limit}

    def load(self) -> dict[str, Dataset[Batch]]:
        """Decode both splits."""
        skipped = Skipped()
        splits: dict[str, Dataset[Batch]] = {
            name: self._decode(samples, name, skipped) for name, samples in self._samples(skipped).items()
        }
        skipped.warn(log, self.root)
        return splits

    def entries(self) -> list[Entry]:
        """Both splits, each image with its class; none is read."""
        skipped = Skipped()
        samples = self._samples(skipped)
        skipped.warn(log, self.root)
        return [
            Entry(path, relative(path, self.root), {"class": self.classes["class"][label]}, split)
            for split, of_split in samples.items()
            for path, label in of_split
        ]

    def _samples(self, skipped: Skipped) -> dict[str, list[Sample]]:
        """The images of both splits; sets `classes`."""
        root = shown(self.root)
        for name in ("train", "test"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"{root}/{name} does not exist: expected {root}/{{train,test}}/CLASS/IMAGE")
        found = {name: self._class_folders(name, skipped) for name in ("train", "test")}
        alone = sorted(found["train"].keys() ^ found["test"].keys())
        if alone:
            names = ", ".join(shown(name) for name in alone[:5])
            raise ValueError(f"{root}: train and test must have the same class folders; in one of them only: {names}")
        self.classes = {"class": [shown(name) for name in found["train"]]}
        return {name: self._limited(classes, name) for name, classes in found.items()}

    def _class_folders(self, split: str, skipped: Skipped) -> dict[str, list[Path]]:
        """The images of each class, in the order of their names."""
        folder, classes = self.root / split, dict[str, list[Path]]()
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                classes[path.name] = [file for file in files_below(path, skipped) if _is_image(file, skipped)]
            elif _is_image(path, skipped):
                skipped.add("in no class folder", path)
        empty = [shown(name) for name, files in classes.items() if not files]
        if empty or not classes:
            skipped.warn(log, self.root)
            where = f"the class folders {', '.join(empty[:5])}" if empty else "class folders"
            raise ValueError(f"{shown(folder)} holds no images in {where}: read are {' '.join(SUFFIXES)}")
        return classes

    def _limited(self, classes: dict[str, list[Path]], split: str) -> list[Sample]:
        """Images with their classes, the same number of each where there is a limit."""
        limit, each = self.limits[split], None
        if limit is not None:
            each = limit // len(classes)
            if not each:
                raise ValueError(
                    f"{split}_limit {limit} leaves no image of each of the {len(classes)} classes: give at least one "
                    "of each"
                )
        return [(path, label) for label, paths in enumerate(classes.values()) for path in paths[:each]]

    def _decode(self, samples: list[Sample], split: str, skipped: Skipped) -> LabelledTensors:
        images, labels = [], []
        for path, label in track(samples, f"reading {split}", len(samples)):
            try:
                images.append(square(read_image(path, self.grey), self.image_size))
                labels.append(label)
            except ImageFileError as error:
                skipped.add(error.reason, path)
            except FileNotFoundError:
                skipped.add("out of reach: it is gone", path)
        if not images:
            skipped.warn(log, self.root)
            raise ValueError(f"{shown(self.root / split)} holds no readable image")
        return LabelledTensors(torch.stack(images), {"class": labels})


def _is_image(path: Path, skipped: Skipped) -> bool:
    """Whether a file is read as an image; hidden files of other formats are what programs leave, and not mentioned."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.name.startswith("."):
        skipped.add(f"not read as an image: {shown(path.suffix.lower()) or 'no suffix'}", path)
    return False


class FashionMNIST(DataModule):
    """Fashion-MNIST from a folder that holds its four IDX files, compressed or not; nothing is downloaded.

    Args:
        root: the folder, 28x28 grey images.
        common: see `DataModule`.
    """

    modality = "image"

    def __init__(self, root: str, **common: Any) -> None:
        super().__init__(**common)
        self.root = Path(root)

    def load(self) -> dict[str, Dataset[Batch]]:
        """Read both splits."""
        self.classes = {"class": datasets.FashionMNIST.classes}
        return {name: self._read(prefix) for name, prefix in (("train", "train"), ("test", "t10k"))}

    def _read(self, prefix: str) -> LabelledTensors:
        try:
            with tempfile.TemporaryDirectory() as unpacked:
                images = datasets.mnist.read_image_file(self._file(f"{prefix}-images-idx3-ubyte", unpacked))
                labels = datasets.mnist.read_label_file(self._file(f"{prefix}-labels-idx1-ubyte", unpacked))
            if len(images) != len(labels) or not len(images) or not 0 <= int(labels.min()) <= int(labels.max()) < 10:
                raise ValueError(f"{len(images)} images and {len(labels)} labels from 0 to 9 do not go together")
        except FileNotFoundError:
            raise
        except Exception as error:  # torchvision's reader fails in many ways
            raise ValueError(f"{shown(self.root)}: the {prefix} IDX files are damaged: {error!r}") from error
        return LabelledTensors(images.unsqueeze(1), {"class": labels.tolist()})

    def _file(self, name: str, unpacked: str) -> str:
        """The raw file; a compressed one is unpacked elsewhere, the folder may be read-only."""
        raw, packed = self.root / name, self.root / f"{name}.gz"
        if raw.is_file():
            return str(raw)
        if packed.is_file():
            return str(datasets.utils.extract_archive(str(packed), unpacked))
        raise FileNotFoundError(f"{raw} does not exist, nor {packed.name}: the folder must hold the IDX files")
