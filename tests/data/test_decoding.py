"""Every kind of file that people have, and every kind that is broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from l2l_jax.data.decoding import ImageError, open_image
from tests.data.pictures import encoded, gradient

PICTURE = gradient()


def decode(file, shrink=1):
    opened = open_image(file)
    pixels = opened.pixels(shrink)
    if shrink == 1:
        assert pixels.shape == (opened.height, opened.width, 3)
    assert pixels.dtype == np.uint8
    return pixels


def assert_close(pixels, expected, tolerance):
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=tolerance)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 95, "optimize": True}]
)
def test_jpeg_is_what_pillow_decodes(options):
    file = encoded(PICTURE, "JPEG", **options)
    np.testing.assert_array_equal(decode(file), np.asarray(Image.open(io.BytesIO(file))))
    assert_close(decode(file), PICTURE, 12)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_are_exact(kind):
    np.testing.assert_array_equal(decode(encoded(PICTURE, kind)), PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_greyscale_fills_three_channels(kind):
    grey = PICTURE[..., 0]
    assert_close(decode(encoded(grey, kind)), np.repeat(grey[..., None], 3, axis=-1), 2)


def test_cmyk_jpeg():
    """Pillow writes C = 255 − R, …, K = 0, which any reader must turn back."""
    file = encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=100)
    assert_close(decode(file), PICTURE, 6)


def test_16_bit_greyscale_keeps_its_range():
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded(values, "PNG"))[..., 1], expected)


def test_transparent_pixels_lie_on_white():
    alpha = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)
    file = encoded(np.dstack([PICTURE, np.broadcast_to(alpha, (48, 64))]), "PNG")
    expected = np.where(np.arange(64)[None, :, None] < 32, PICTURE, 255)
    np.testing.assert_array_equal(decode(file), expected)


def test_palette_with_a_transparent_colour():
    image = Image.fromarray((np.arange(48 * 64) % 3).astype(np.uint8).reshape(48, 64), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255]])  # green is transparent
    file = encoded(image, "PNG", transparency=1)
    np.testing.assert_array_equal(decode(file), colours[np.arange(48 * 64) % 3].reshape(48, 64, 3))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **lossless)
    np.testing.assert_array_equal(decode(file), np.broadcast_to([255, 0, 0], (8, 16, 3)))


TURNED = {  # what the camera stored of an upright picture, by EXIF orientation (TIFF 6.0, page 36)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](PICTURE))
    file = encoded(stored, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    assert_close(decode(file), PICTURE, 5)


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 3])
def test_a_jpeg_can_be_decoded_smaller(shrink, orientation):
    """A pixel is then the mean of a square of pixels; sides that do not divide are rounded up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if orientation == 1 else {"exif": exif}  # Pillow decodes what is turned
    picture = gradient(121, 200)
    stored = np.ascontiguousarray(TURNED[orientation](picture))
    small = decode(encoded(stored, "JPEG", quality=100, subsampling=0, **options), shrink)
    assert small.shape == (-(-121 // shrink), 200 // shrink, 3)
    rows = 121 // shrink - 1
    squares = stored[: rows * shrink].reshape(rows, shrink, 200 // shrink, shrink, 3)
    assert_close(TURNED[orientation](small)[:rows], np.rint(squares.mean(axis=(1, 3))), 4)


def huge(kind):
    """A small file that claims 30,000 × 30,000 pixels."""
    if kind == "JPEG":
        file = bytearray(encoded(PICTURE, "JPEG"))
        place = file.index(b"\xff\xc0") + 5
        file[place : place + 4] = struct.pack(">HH", 30000, 30000)
        return bytes(file)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9))),
    )
    sums = (struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    parts = (struct.pack(">I", len(data)) + kind + data for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + s for part, s in zip(parts, sums, strict=True))


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
BROKEN = {
    "empty": (b"", "the file is empty"),
    "a web page": (b"<html><body>403 Forbidden</body></html>", "no image format that is known"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "[Tt]runcated"),
    "JPEG without an end": (JPEG[:-200], "[Tt]runcated"),
    "head of a JPEG": (JPEG[:30], "."),
    "cut PNG": (PNG[: len(PNG) // 2], "[Tt]runcated"),
    "PNG with a wrong checksum": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "."),
    "JPEG bomb": (huge("JPEG"), "30000×30000 pixels|decompression bomb"),
    "PNG bomb": (huge("PNG"), "30000×30000 pixels|decompression bomb"),
    "float TIFF": (encoded(np.ones((4, 4), np.float32), "TIFF"), "floating-point"),
    "32-bit TIFF": (encoded(np.full((4, 4), 2**20, np.int32), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_why(name):
    file, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decode(file)


def test_wherever_a_file_is_cut_nothing_else_is_raised():
    for file in (JPEG, PNG, encoded(PICTURE, "GIF"), encoded(PICTURE, "WEBP"), encoded(PICTURE, "TIFF")):
        for length in np.linspace(0, len(file) - 1, 40).astype(int):
            try:
                pixels = decode(file[:length])
            except ImageError:
                continue
            assert pixels.shape == PICTURE.shape  # only bytes after the picture were missing
            assert length > 0.9 * len(file)
