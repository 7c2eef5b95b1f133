"""Damaged files of all kinds: nothing but the project's own errors comes out."""

import numpy as np
import pytest
from PIL import Image

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from tests.data.pictures import encoded, gradient
from tests.data.test_decoding import exif, png, with_exif

SEEDS = [
    *(encoded(gradient(24, 32), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")),
    encoded(Image.fromarray(gradient(24, 32)).convert("CMYK"), "JPEG"),
    encoded(gradient(24, 32), "JPEG", progressive=True),
    png(np.arange(64).reshape(8, 8, 1), 16, 0),
    *(with_exif(kind, exif([(0x112, 3, 1, b"\x06\0")])) for kind in ("JPEG", "PNG")),
]

TABLE = b'path,label,split\nbob/0.jpg,bob,train\n"bob/1.jpg",bob,test\nbob/2.jpg,"b,ob",val\n'


def mutated(content, rng):
    """Change, remove, repeat and insert bytes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        place, length = rng.integers(len(content)), rng.integers(1, 9)
        kind = rng.integers(4)
        if kind == 0:
            content[place] ^= 1 << rng.integers(8)
        elif kind == 1:
            content[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del content[place : place + length]
        else:
            content[place:place] = content[place // 2 : place // 2 + length * 8]
        content = content or bytearray(b"\0")
    return bytes(content)


def check_image(content):
    try:
        opened = open_image(content)
        if opened.height * opened.width < 10**6:
            pixels = opened.pixels()
            assert pixels.dtype == np.uint8 and pixels.shape == (opened.height, opened.width, 3)
    except ImageError as error:
        assert str(error)


def check_table(folder, content):
    (folder / "table.csv").write_bytes(content)
    for split in ("train", "test"):
        try:
            open_source(SourceConfig("csv", str(folder / "table.csv")), split, 8)
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize("count", [30, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_images(count):
    rng = np.random.default_rng(count)
    for _ in range(count):
        check_image(mutated(SEEDS[rng.integers(len(SEEDS))], rng))


@pytest.mark.parametrize("count", [30, pytest.param(5_000, marks=pytest.mark.soak)])
def test_damaged_tables(count, tmp_path):
    rng = np.random.default_rng(count)
    (tmp_path / "bob").mkdir()
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / "bob" / f"{number}.jpg")
    for _ in range(count):
        check_table(tmp_path, mutated(TABLE, rng))
