"""Decoding of valid and damaged image files in all formats."""

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
def test_jpeg_matches_pillow(options):
    file = encoded(PICTURE, "JPEG", **options)
    np.testing.assert_array_equal(decode(file), np.asarray(Image.open(io.BytesIO(file))))
    assert_close(decode(file), PICTURE, 12)


def test_lossless_files_are_exact():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(encoded(PICTURE, kind)), PICTURE)


def test_gray_and_cmyk_files():
    """Pillow writes C = 255 − R, …, K = 0, which readers must invert."""
    for kind in ("JPEG", "PNG"):
        gray = np.repeat(PICTURE[..., :1], 3, axis=-1)
        assert_close(decode(encoded(gray[..., 0], kind)), gray, 2)
    assert_close(decode(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=100)), PICTURE, 6)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, color_type, extra=b""):
    """Encode a PNG file from `[height, width, channel]` samples of `depth` bits."""
    height, width, channels = values.shape
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, width * channels * depth).astype(np.uint8), axis=1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + pixels + chunk(b"IEND", b"")


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("color", "depth"), [(color, depth) for color in DEPTHS for depth in DEPTHS[color]])
def test_every_kind_of_png(color, depth, transparent):
    """Compared with the PNG specification: samples scaled to 255, transparency composited over white."""
    rng = np.random.default_rng(depth)
    values = rng.integers(0, 2**depth, (8, 8, CHANNELS[color]))
    values[0, :2] = values[3, 3]
    unit = 2**depth - 1
    palette = rng.integers(0, 256, (2**depth, 3), np.uint8)
    pixels = palette[values[..., 0]].astype(float) if color == 3 else values * 255 / unit
    alpha = np.ones((8, 8, 1))
    extra = chunk(b"PLTE", palette.tobytes()) if color == 3 else b""
    if transparent and color == 3:
        opacity = rng.integers(0, 256, 2**depth, np.uint8)
        extra += chunk(b"tRNS", opacity.tobytes())
        alpha = opacity[values] / 255
    elif transparent and color in (0, 2):
        key = values[3, 3]
        extra += chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
        alpha = (values != key).any(-1, keepdims=True).astype(float)
        assert (alpha == 0).sum() >= 3
    if color in (4, 6):
        pixels, alpha = pixels[..., :-1], values[..., -1:] / unit
    expected = np.broadcast_to(alpha * pixels + (1 - alpha) * 255, (8, 8, 3))
    exact = depth <= 8 and (alpha.min() == 1 or color in (0, 2))
    tolerance = 0.51 if exact else 2.1  # Pillow truncates 16 bits to 8
    np.testing.assert_allclose(decode(png(values, depth, color, extra)), expected, atol=tolerance)


def test_tiffs_of_other_modes():
    """CMYK and YCbCr by their definitions, CIELab by CIE's at the neutral axis and in sign of a and b."""
    ink = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    expected = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:]) / 255
    np.testing.assert_allclose(decode(encoded(Image.fromarray(ink, "CMYK"), "TIFF")), expected, atol=1)
    lab = np.zeros((1, 5, 3), np.uint8)
    lab[0, :, 0] = 0, 128, 255, 140, 140  # lightness 0, 50.2, 100
    lab[0, 3:, 1] = 60, 256 - 60  # a: red, green
    dark, gray, white, red, green = decode(encoded(Image.fromarray(lab, "LAB"), "TIFF"))[0].astype(int)
    assert dark.max() <= 1 and white.min() >= 253 and np.abs(gray - 119).max() <= 2
    assert red[0] > red[1] + 100 and green[1] > green[0] + 50
    gray = np.array([[0, 257, 32768, 65535]], np.uint16)
    for kind in ("TIFF", "PPM"):
        np.testing.assert_array_equal(decode(encoded(gray, kind))[0, :, 0], [0, 1, 128, 255])
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encoded(bits, "TIFF"))[0, :, 1], [0, 255])


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_gray_tiffs_of_every_depth(bits, white_is_zero):
    """Hand-written TIFF files; Pillow does not support 12 bits with white as zero."""
    values = np.linspace(0, 2**bits - 1, 32).astype(int).reshape(4, 8)
    pixels = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    if bits == 16:
        pixels = values.astype("<u2").tobytes()
    values_of = {256: 8, 257: 4, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 4}
    tags = [*values_of.items(), (279, len(pixels))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    file = head + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)
    expected = np.rint(values * 255 / (2**bits - 1))
    if (bits, white_is_zero) == (12, True):
        with pytest.raises(ImageError):
            decode(file)
    else:
        np.testing.assert_array_equal(decode(file)[..., 1], 255 - expected if white_is_zero else expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **lossless)
    np.testing.assert_array_equal(decode(file), np.broadcast_to([255, 0, 0], (8, 16, 3)))


TURNED = {  # pixels stored by the camera for an upright image, by EXIF orientation (TIFF 6.0, page 36)
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
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x112: orientation}} if kind == "TIFF" else {"exif": exif}
    stored = np.ascontiguousarray(TURNED[orientation](PICTURE))
    assert_close(decode(encoded(stored, kind, quality=100, subsampling=0, **options)), PICTURE, 5)


def exif(entries, order="<"):
    """Encode a block of EXIF tags: `(tag, type, count, value bytes)`."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tags = b"".join(struct.pack(order + "HHI", *e[:3]) + e[3].ljust(4, b"\0") for e in entries)
    return mark + struct.pack(order + "IH", 8, len(entries)) + tags + bytes(4)


def with_exif(kind, block):
    if kind == "JPEG":
        data = b"Exif\0\0" + block
        return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + JPEG[2:]
    if kind == "ImageMagick's PNG":
        data = b"Exif\0\0" + block
        profile = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
        return PNG[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)) + PNG[33:]
    return PNG[:33] + chunk(b"eXIf", block) + PNG[33:]


ODD = {
    "orientation 0": (exif([(0x112, 3, 1, b"\0\0")]), 1),
    "orientation 9": (exif([(0x112, 3, 1, b"\x09\0")]), 1),
    "orientation as text": (exif([(0x112, 2, 2, b"6\0")]), 1),
    "two orientations": (exif([(0x112, 3, 2, b"\x06\0\x06\0")]), 1),
    "no tags": (b"II*\0", 1),
    "not TIFF": (b"hello", 1),
    "tags outside": (b"II*\0\xff\xff\xff\x7f", 1),
    "bad neighbors": (exif([(0x10E, 99, 2**31, b"zzzz"), (0x112, 3, 1, b"\x06\0")]), 6),
    "big-endian": (exif([(0x112, 3, 1, b"\0\x06")], ">"), 6),
    "as 32 bits": (exif([(0x112, 4, 1, b"\x06\0\0\0")]), 6),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "ImageMagick's PNG"])
@pytest.mark.parametrize("name", ODD)
def test_invalid_metadata_does_not_prevent_decoding(name, kind):
    block, orientation = ODD[name]
    plain = decode(JPEG if kind == "JPEG" else PNG)
    np.testing.assert_array_equal(TURNED[orientation](decode(with_exif(kind, block))), plain)


@pytest.mark.parametrize(
    "bad",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n   9\nnot hexadecimal"),
        chunk(b"iCCP", b"x\0\0not compressed"),
        struct.pack(">I", 4) + b"tEXtdata" + b"\0\0\0\0",  # a wrong checksum
    ],
)
def test_damaged_ancillary_png_chunks_are_ignored(bad):
    for place in (33, len(PNG) - 12):  # before and after the pixels
        np.testing.assert_array_equal(decode(PNG[:place] + bad + PNG[place:]), PICTURE)


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 3])
def test_jpeg_decoding_at_reduced_size(shrink, orientation):
    """A pixel is the mean of a square of pixels; sides that are not multiples are rounded up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if orientation == 1 else {"exif": exif}  # rotated images are decoded by Pillow
    picture = gradient(121, 200)
    stored = np.ascontiguousarray(TURNED[orientation](picture))
    small = decode(encoded(stored, "JPEG", quality=100, subsampling=0, **options), shrink)
    assert small.shape == (-(-121 // shrink), 200 // shrink, 3)
    rows = 121 // shrink - 1
    squares = stored[: rows * shrink].reshape(rows, shrink, 200 // shrink, shrink, 3)
    assert_close(TURNED[orientation](small)[:rows], np.rint(squares.mean(axis=(1, 3))), 4)


def huge(kind):
    """Return a small file whose header claims 30,000 × 30,000 pixels."""
    if kind == "JPEG":
        file = bytearray(encoded(PICTURE, "JPEG"))
        place = file.index(b"\xff\xc0") + 5
        file[place : place + 4] = struct.pack(">HH", 30000, 30000)
        return bytes(file)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9)))


JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
BROKEN = {
    "empty": (b"", "the file is empty"),
    "a web page": (b"<html><body>403 Forbidden</body></html>", "unknown image format"),
    "PostScript, a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "unknown image format"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "[Tt]runcated"),
    "JPEG without an end": (JPEG[:-200], "[Tt]runcated"),
    "head of a JPEG": (JPEG[:30], "."),
    "cut PNG": (PNG[: len(PNG) // 2], "[Tt]runcated"),
    "PNG with a wrong checksum": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "."),
    "JPEG bomb": (huge("JPEG"), "30000×30000 pixels|decompression bomb"),
    "PNG bomb": (huge("PNG"), "30000×30000 pixels|decompression bomb"),
    "float TIFF": (encoded(np.ones((4, 4), np.float32), "TIFF"), "floating-point"),
    "32-bit TIFF": (encoded(np.full((4, 4), 2**20, np.int32), "TIFF"), "32-bit"),
    "32-bit TIFF of small values": (encoded(np.full((4, 4), 200, np.int32), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_of_damaged_files(name):
    file, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decode(file)
