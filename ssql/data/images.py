"""Images: scikit-learn's digits, any folder of class folders, Fashion-MNIST."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from encoders.storage.paths import check_regular, shown
from quant.checks import check_at_least
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.module import DataModule
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

# What Pillow raises for files that are damaged, no images at all, or so large that they are bombs.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


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

    Args:
        root: the folder.
        image_size: height and width in pixels; other sizes are resized and cropped at the centre.
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
        root = shown(self.root)
        for name in ("train", "test"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"{root}/{name} does not exist: expected {root}/{{train,test}}/CLASS/IMAGE")
        folders = {}
        for name in ("train", "test"):
            try:
                folders[name] = datasets.ImageFolder(self.root / name)
            except FileNotFoundError as error:
                raise ValueError(f"{root}/{name} holds no images in class folders: {shown(str(error))}") from None
        train, test = (set(folders[name].classes) for name in ("train", "test"))
        if train != test:
            alone = ", ".join(shown(name) for name in sorted(train ^ test)[:5])
            raise ValueError(f"{root}: train and test must have the same class folders; in one of them only: {alone}")
        self.classes = {"class": [shown(name) for name in folders["train"].classes]}
        return {name: self._decode(folder.samples, name) for name, folder in folders.items()}

    def _decode(self, samples: list[tuple[str, int]], split: str) -> LabelledTensors:
        limit = self.limits[split]
        if limit is not None:
            each = limit // len(self.classes["class"])
            if not each:
                raise ValueError(
                    f"{split}_limit {limit} leaves no image of each of the {len(self.classes['class'])} classes: give "
                    "at least one of each"
                )
            by_class: dict[int, list[tuple[str, int]]] = {}
            for path, label in samples:
                by_class.setdefault(label, []).append((path, label))
            samples = [sample for group in by_class.values() for sample in group[:each]]
        images, labels, skipped = [], [], []
        for path, label in track(samples, f"reading {split}", len(samples)):
            try:
                images.append(self._read(Path(path)))
                labels.append(label)
            except _UNREADABLE:
                skipped.append(shown(path))
        if skipped:
            log.warning(
                "skipped %d unreadable images: %s", len(skipped), ", ".join(skipped[:3]) + " ..." * (len(skipped) > 3)
            )
        if not images:
            raise ValueError(f"{shown(self.root / split)} holds no readable image")
        return LabelledTensors(torch.stack(images), {"class": labels})

    def _read(self, path: Path) -> Tensor:
        check_regular(path)
        with Image.open(path) as file:
            image = v2.functional.pil_to_tensor(file.convert("L" if self.grey else "RGB"))
        if image.shape[1:] != (self.image_size, self.image_size):
            image = v2.functional.resize(image, [self.image_size], antialias=True)
            image = v2.functional.center_crop(image, [self.image_size, self.image_size])
        return image


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
