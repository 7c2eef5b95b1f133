"""Recreate the package's subset of Fashion-MNIST: `python tools/fashion_subset.py FOLDER`.

FOLDER holds the original IDX files, for example /usr/share/datasets/fashion-mnist of Debian's package
dataset-fashion-mnist. The subset has the first images of each class in file order. Its digests are printed.
"""

import hashlib
import lzma
import sys

import numpy as np
from etils import epath

from l2l_jax.data.arrays import FASHION, FASHION_CLASSES, read_idx_split

PER_CLASS = {"train": 500, "test": 200}

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]


def main(folder: str) -> None:
    """Write the subset's files and print its digests."""
    FASHION.mkdir(exist_ok=True)
    for split, count in PER_CLASS.items():
        images, labels = read_idx_split(epath.Path(folder), split)
        classes = range(len(FASHION_CLASSES))
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == number)[:count] for number in classes]))
        prefix = "train" if split == "train" else "t10k"
        for kind, values in (("images", images[chosen]), ("labels", labels[chosen])):
            header = np.array([8 * 256 + values.ndim, *values.shape], ">u4").tobytes()
            name = f"{prefix}-{kind}-idx{values.ndim}-ubyte.xz"
            packed = lzma.compress(header + values.tobytes(), filters=FILTERS)
            (FASHION / name).write_bytes(packed)
        print(split, hashlib.sha256(images[chosen].tobytes() + labels[chosen].tobytes()).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
