"""Pixels against numpy, from files that are written byte by byte where Pillow does not write them."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ssql.data.image_file import FORMATS, ImageFileError, decoded_image, read_image

DRAWN = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 4096).reshape(64, 64)
EXPECTED = np.rint(255 * RAMP)


def png(array: np.ndarray, colour: int, transparent: bytes | None = None) -> bytes:
    """A PNG of 16 bits: colour 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    known = b"" if transparent is None else chunk(b"tRNS", transparent)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + known
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(array: np.ndarray, photometric: int = 1) -> bytes:
    """A grey TIFF of numpy's type."""
    data, sample_format = array.tobytes(), {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    height, width = array.shape
    tags = {256: width, 257: height, 258: 8 * array.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def pgm(array: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % array.shape[::-1] + array.astype(">u2").tobytes()


def scaled(low: int, high: int, kind: type) -> np.ndarray:
    return np.rint(low + RAMP * (high - low)).astype(kind)


def pixels(data: bytes, grey: bool = False) -> np.ndarray:
    """Shape (height, width) if grey, else (height, width, 3); as int."""
    image = decoded_image(io.BytesIO(data), "it", grey).permute(1, 2, 0).numpy().astype(int)
    return image[..., 0] if grey else image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


WIDE = {
    "uint16 png": png(scaled(0, 2**16 - 1, np.uint16), 0),
    "uint16 pgm": pgm(scaled(0, 2**16 - 1, np.uint16)),
    "uint16 tiff": tiff(scaled(0, 2**16 - 1, np.uint16)),
    "uint32 tiff": tiff(scaled(0, 2**32 - 1, np.uint32)),
    "int16 tiff": tiff(scaled(-(2**15), 2**15 - 1, np.int16)),
    "int16 tiff, none negative": tiff(scaled(0, 2**15 - 1, np.int16)),
    "int32 tiff": tiff(scaled(-(2**31), 2**31 - 1, np.int32)),
    "int32 tiff, none negative": tiff(scaled(0, 2**31 - 1, np.int32)),
    "int32 tiff of 16 bits": tiff(scaled(0, 2**16 - 1, np.int32)),
    "int32 tiff of 8 bits": tiff(scaled(0, 2**8 - 1, np.int32)),
    "float tiff": tiff(RAMP.astype(np.float32)),
    "float tiff beyond [0, 1]": tiff((700 * RAMP - 300).astype(np.float32)),
    "16-bit RGB png": png(np.stack([scaled(0, 2**16 - 1, np.uint16)] * 3, axis=-1), 2),
}


@pytest.mark.parametrize("kind", WIDE)
def test_a_ramp_of_many_bits_comes_out_as_a_ramp(kind):
    for grey in (False, True):
        found = pixels(WIDE[kind], grey)
        assert abs(found - (EXPECTED if grey else EXPECTED[..., None])).max() <= 1
        assert len(np.unique(found)) == 256


def test_the_range_of_the_type_counts_and_not_of_the_image():
    half = scaled(0, 2**15, np.uint16)
    assert pixels(png(half, 0), grey=True).max() == 128
    assert pixels(tiff((RAMP / 2).astype(np.float32)), grey=True).max() == 128


@pytest.mark.parametrize("array", [scaled(0, 2**16 - 1, np.uint16), RAMP.astype(np.float32)])
def test_white_is_zero_in_some_tiff_files(array):
    assert abs(pixels(tiff(array, photometric=0), grey=True) - (255 - EXPECTED)).max() <= 1


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_is_refused(number):
    array = RAMP.astype(np.float32)
    array[3, 4] = number
    with pytest.raises(ImageFileError, match="^it has a pixel that is NaN or infinite"):
        pixels(tiff(array))


RGBA = DRAWN.integers(0, 256, (20, 30, 4), dtype=np.uint8)
ON_WHITE = (RGBA[..., :3] * (RGBA[..., 3:] / 255) + 255 * (1 - RGBA[..., 3:] / 255)).round()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparent_parts_are_white(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert abs(pixels(saved(Image.fromarray(RGBA), kind, **options)) - ON_WHITE).max() <= 1
    grey = Image.fromarray(RGBA[..., [0, 3]])
    if kind != "WEBP":
        assert abs(pixels(saved(grey, kind), grey=True) - ON_WHITE[..., 0]).max() <= 1


def test_transparency_of_a_16_bit_png():
    wide = RGBA.astype(np.uint16) * 257
    assert abs(pixels(png(wide, 6)) - ON_WHITE).max() <= 1
    assert abs(pixels(png(wide[..., [0, 3]], 4), grey=True) - ON_WHITE[..., 0]).max() <= 1
    found = pixels(png(scaled(0, 2**16 - 1, np.uint16), 0, struct.pack(">H", 0)), grey=True)
    assert found[0, 0] == 255 and found[0, 63] == EXPECTED[0, 63]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_gives_its_colours(kind):
    colours = DRAWN.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = DRAWN.permutation(256).astype(np.uint8).reshape(16, 16)
    image = Image.frombytes("P", (16, 16), indices.tobytes())
    image.putpalette(colours.tobytes())
    assert (pixels(saved(image, kind)) == colours[indices]).all()
    if kind in ("PNG", "GIF"):
        found = pixels(saved(image, kind, transparency=7))
        assert (found == np.where((indices == 7)[..., None], 255, colours[indices])).all()
    if kind == "PNG":
        opacity = DRAWN.integers(0, 256, 256, dtype=np.uint8)
        share = opacity[indices][..., None] / 255
        found = pixels(saved(image, kind, transparency=opacity.tobytes()))
        assert abs(found - (colours[indices] * share + 255 * (1 - share))).max() <= 1


def test_cmyk_and_one_bit():
    ink = DRAWN.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    expected = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
    assert abs(pixels(saved(Image.fromarray(ink, "CMYK"), "TIFF")) - expected).max() <= 1
    flat = np.full((16, 16, 4), (200, 30, 90, 40), np.uint8)
    expected = (255 - flat[..., :3].astype(float)) * (255 - 40) / 255
    assert abs(pixels(saved(Image.fromarray(flat, "CMYK"), "JPEG", quality=100)) - expected).max() <= 4
    bits = DRAWN.random((9, 13)) < 0.5
    for kind in ("PNG", "TIFF", "BMP"):
        assert (pixels(saved(Image.fromarray(bits), kind), grey=True) == 255 * bits).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_an_image_upright(kind):
    upright = DRAWN.integers(0, 256, (5, 7, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    # How EXIF's table has it: what the stored rows and columns are of the picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    for number, array in stored.items():
        exif = Image.Exif()
        exif[0x112] = number
        found = pixels(saved(Image.fromarray(np.ascontiguousarray(array)), kind, exif=exif, **options))
        assert found.shape == upright.shape, number
        assert abs(found - upright).max() <= (6 if kind == "JPEG" else 0), number


def test_a_damaged_exif_hides_no_picture():
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    found = pixels(saved(image, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff\0\0"))
    assert (found == 90).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_was_cut_off_is_refused_wherever_it_ends(kind):
    image = Image.fromarray(DRAWN.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    try:
        data = saved(image, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    assert pixels(data).shape == (64, 64, 3)
    for share in (0, 0.01, 0.1, 0.5, 0.9, 0.97):
        with pytest.raises(ImageFileError, match="^it is (damaged|no image)"):
            pixels(data[: int(share * len(data))])


def test_bombs_programs_and_no_files_are_refused(tmp_path):
    bomb = png(np.zeros((1, 1), np.uint16), 0)
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 16, 0, 0, 0, 0)
    bomb = bomb[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb[33:]
    with pytest.raises(ImageFileError, match="more pixels than the 178,956,970 that are read: .* decompression bomb"):
        pixels(bomb)
    with pytest.raises(ImageFileError, match="is no image of a kind that is read"):  # Pillow would start Ghostscript
        pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageFileError, match="pipe.png is a named pipe, not an image file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match="none.png does not exist"):
        read_image(tmp_path / "none.png")
