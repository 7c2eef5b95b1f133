"""Photographs for the benchmarks; must not import JAX or grain, because worker processes import it."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

SIZE = (500, 375)
BYTES = 110_000


class Photographs:
    """A source of `count` records that repeats a few JPEG files."""

    class_names = ("photograph",)

    def __init__(self, files: Sequence[bytes], count: int):
        self._files, self.labels = tuple(files), np.zeros(count, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self._files[index % len(self._files)], "label": 0, "name": str(index)}


def photographs() -> list[bytes]:
    """Return original and mirrored photographs of `SIZE` as JPEGs of at least `BYTES`."""
    from sklearn.datasets import load_sample_image  # late import, to avoid it in workers

    files = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name)).resize(SIZE, Image.Resampling.BICUBIC)
        for picture in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            files.append(next(file for file in map(_jpeg(picture), range(75, 101)) if len(file) >= BYTES))
    return files


def _jpeg(picture: Image.Image) -> Callable[[int], bytes]:
    def encode(quality: int) -> bytes:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return file.getvalue()

    return encode
