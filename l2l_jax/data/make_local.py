"""Small images for trying the configs: `python -m l2l_jax.data.make_local`.

Writes class folders of real images that are bundled with scikit-learn: crops of its two photographs in many
sizes and aspect ratios, as JPEG, and its handwritten digits, as PNG. It takes a second and downloads nothing.
The `:runlocal` variants of the configs read `data/local`.
"""

import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from l2l_jax.cli.common import Parser, run_program
from l2l_jax.data.files import MADE_LOCALLY
from l2l_jax.errors import UserError

PHOTOGRAPHS = {"temple": "china.jpg", "flower": "flower.jpg"}
DIGITS = (0, 1)


def main(argv: Sequence[str]) -> None:
    """Create the folder according to the command line."""
    description = "Make class folders of small pictures."
    parser = Parser(prog="python -m l2l_jax.data.make_local", description=description)
    place = "folder to make (%(default)s)"
    parser.add_argument("--output", default=MADE_LOCALLY, type=pathlib.Path, help=place)
    parser.add_argument("--train", default=60, type=int, help="training images of each class (%(default)s)")
    parser.add_argument("--test", default=16, type=int, help="test images of each class (%(default)s)")
    args = parser.parse_args(argv[1:])
    if min(args.train, args.test) < 1:
        parser.error("--train and --test must be at least 1")
    if args.output.exists():
        raise UserError(f"{args.output} exists. Choose another --output, or delete it first.")
    make(args.output, {"train": args.train, "val": args.test})
    print(f"{4 * (args.train + args.test)} images in {args.output}")


def make(folder: pathlib.Path, counts: dict[str, int]) -> None:
    """Write `folder/<split>/<class>/<number>.jpg` (or `.png`), with `counts[split]` images of each class.

    Training images are cropped from the left two thirds of the photographs, test images ("val") from the
    right third. Digits are repeated if there are not enough.
    """
    rng = np.random.default_rng(0)
    for name, file in PHOTOGRAPHS.items():
        photograph = load_sample_image(file)
        sides = np.split(photograph, [photograph.shape[1] * 2 // 3], axis=1)
        for (split, count), side in zip(counts.items(), sides, strict=True):
            parts = (_part(side, rng) for _ in range(count))
            _write(folder / split / name, parts, ".jpg", quality=90)
    digits = load_digits()
    for digit in DIGITS:
        scans = digits.images[digits.target == digit]
        for (split, count), part in zip(counts.items(), np.split(scans, [len(scans) * 3 // 4]), strict=True):
            pictures = np.rint(np.resize(part, (count, 8, 8)) * 255 / 16).astype(np.uint8)
            _write(folder / split / f"digit_{digit}", pictures, ".png")


def _part(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(64, 160, 2)
    top = rng.integers(photograph.shape[0] - height + 1)
    left = rng.integers(photograph.shape[1] - width + 1)
    return photograph[top : top + height, left : left + width]


def _write(folder: pathlib.Path, pictures: Iterable[np.ndarray], suffix: str, **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04}{suffix}", **options)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
