"""Small images and sources; must not import JAX or grain, because worker processes import it."""

import io

import numpy as np
from PIL import Image

from l2l_jax.data.records import Source


def gradient(height=48, width=64):
    """Return a smooth image, uint8 `[height, width, 3]`, with four different corners."""
    y, x = np.mgrid[:height, :width].astype(float)
    channels = 40 + 150 * x / width, 220 - 140 * y / height, 60 + 90 * (x / width) * (y / height)
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def encoded(picture, kind, **options):
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class Files(Source):
    """A source of `count` JPEG files; image i has gray value 10 + 2 i. Files in `broken` are truncated."""

    class_names = ("only",)

    def __init__(self, count, broken=()):
        self.labels, self._broken = np.zeros(count, int), frozenset(broken)

    def __getitem__(self, index):
        file = encoded(np.full((8, 12, 3), 10 + 2 * index, np.uint8), "JPEG", quality=100)
        image = file[: len(file) // 2] if index in self._broken else file
        return {"image": image, "label": 0, "name": f"image {index}"}


class Failing(Files):
    def __getitem__(self, index):
        raise KeyError(f"no record {index}")


class Records:
    """Serialized examples with given labels, with a count of the examples read in this process."""

    def __init__(self, labels):
        self.labels, self.read = list(labels), 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from tensorflow_datasets.proto import tf_example_pb2  # late import, to avoid it in other workers

        self.read += 1
        example = tf_example_pb2.Example()
        example.features.feature["label"].int64_list.value.extend(np.atleast_1d(self.labels[index]).tolist())
        example.features.feature["image"].bytes_list.value.append(b"no image")
        return example.SerializeToString()
