"""One image file, of any kind that Pillow reads, as pixels of 8 bits."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import v2

from encoders.storage.paths import kind_of, shown

# Pillow knows more formats; one of them, EPS, starts another program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".bmp", ".dib", ".tif",
    ".tiff", ".webp", ".gif", ".avif", ".jp2", ".j2k", ".jpx",
)  # fmt: skip
_TURNED: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF, and what two of them say.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


class ImageFileError(ValueError):
    """A file that holds no usable image.

    Args:
        name: of the file.
        sentence: what is wrong, after the file's name.
        reason: the same in a word or two, equal for all files it is true of.
    """

    def __init__(self, name: str | Path, sentence: str, reason: str) -> None:
        super().__init__(f"{shown(name)} {sentence}")
        self.reason = reason


def read_image(path: Path, grey: bool = False) -> Tensor:
    """The first picture of an image file, upright, its transparent parts on white, as `decoded_image` makes it.

    Args:
        path: of the file.
        grey: one channel instead of three.

    Returns:
        uint8, shape (1 or 3, height, width).

    Raises:
        FileNotFoundError: no such file.
        ImageFileError: no regular file, no image, damaged, cut off, or of too many pixels.
    """
    kind = kind_of(path)
    if kind == "missing":
        raise FileNotFoundError(f"{shown(path)} does not exist")
    if kind is not None:
        raise ImageFileError(path, f"is {kind}, not an image file", kind)
    try:
        with path.open("rb") as file:
            return decoded_image(file, path, grey)
    except OSError as error:
        raise ImageFileError(path, f"cannot be read: {error.strerror}", f"out of reach: {error.strerror}") from error


def decoded_image(file: BinaryIO, name: str | Path, grey: bool = False) -> Tensor:
    """The first picture in an open file.

    Integers of more than 8 bits are scaled by the range of their type, of which only the positive half counts where
    no pixel is negative. Those of 32 bits are scaled as 8 or 16 bits where all pixels are that small, because
    programs keep such images in 32 bits. Floats in [0, 1] are scaled by 255; an image with others is stretched from
    its smallest to its largest.

    Args:
        file: image, at its start.
        name: for the message.
        grey: one channel instead of three.

    Returns:
        uint8, shape (1 or 3, height, width).

    Raises:
        ImageFileError: no image, damaged, cut off, or of too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow doubts but reads, and half of the pixels that it refuses
        try:
            with Image.open(file, formats=FORMATS) as image:
                image.load()
                turned = _TURNED.get(_orientation(image))
                shown_image = _on_white(_in_8_bits(image, name)).convert("L" if grey else "RGB")
        except Image.DecompressionBombError as error:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            sentence = f"has more pixels than the {most:,} that are read: it may be a decompression bomb"
            raise ImageFileError(name, sentence, "too many pixels") from error
        except Image.UnidentifiedImageError as error:
            sentence = f"is no image of a kind that is read ({', '.join(FORMATS)})"
            raise ImageFileError(name, sentence, "no image") from error
        except (MemoryError, ImageFileError):
            raise
        except Exception as error:  # Pillow's decoders fail in many ways
            raise ImageFileError(name, f"is damaged, cut off or of a rare kind: {error}", "damaged") from error
        if turned is not None:
            shown_image = shown_image.transpose(turned)
    return v2.functional.pil_to_tensor(shown_image)


def square(image: Tensor, size: int) -> Tensor:
    """The middle of an image, shape (channels, height, width), resized to (channels, size, size)."""
    if image.shape[1:] == (size, size):
        return image
    # Cut first: the whole of a long and narrow image, resized, would not fit into memory.
    middle = v2.functional.center_crop(image, [min(image.shape[1:])] * 2)
    return v2.functional.resize(middle, [size, size], antialias=True)


def _orientation(image: Image.Image) -> object:
    """EXIF's number of how the camera was held; None where its EXIF is damaged, which hides no picture."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _in_8_bits(image: Image.Image, name: str | Path) -> Image.Image:
    """An image of integers of more than 8 bits, or of floats, as grey of 8 bits; any other as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise ImageFileError(name, "has a pixel that is NaN or infinite", "not finite")
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
    else:
        bits = tags.get(_BITS, (16,))[0]  # also of 16-bit PGM, which Pillow holds in 32
        unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
        if bits == 32 and unsigned:
            values = values.view(np.uint32)
        low, high = _range(values, bits, unsigned)
    share = (values.astype(np.float64) - low) / ((high - low) or 1)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        share = 1 - share
    pixels = np.rint(255 * share).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)


def _range(values: np.ndarray, bits: int, unsigned: bool) -> tuple[int, int]:
    """What is black and what is white, of integers of a type."""
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if bits < 32:
        return 0, 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    return 0, next(2**n - 1 for n in (8, 16, 31, 32) if high < 2**n)


def _on_white(image: Image.Image) -> Image.Image:
    """An image whose transparent parts show white, as on a page."""
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
