"""Make a portrait model forget one person, from a folder of photos to the report.

    python examples/forget_a_person.py                                  # on drawn faces, about two minutes
    python examples/forget_a_person.py --photos=photos --person=bob     # on your own photos

`photos` contains a folder of pictures for each person. Without it, the script draws faces: each person has a
different face, and each picture a different light, position and expression. The script pretrains a small
masked autoencoder on all pictures (docs/guides/weights.md explains how to use your own model instead), makes
it forget the person, and writes the results to `WORKDIR/run/report/report.html`.
"""

import argparse
import pathlib
import runpy
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from l2l_jax.cli.common import run_program
from l2l_jax.config import Config, parse_config
from l2l_jax.experiment import pipeline as experiment
from l2l_jax.report.tables import console

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits_mae.py"
NAMES = ("alice", "bob", "carol", "dave", "erin", "frank")
SIZE = 64
"""Side of a drawn picture in pixels."""


def draw_faces(folder: pathlib.Path, per_person: int = 60) -> None:
    """Draw a folder of portraits for each of `NAMES`."""
    for index, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for number in range(per_person):
            draw_face(index, np.random.default_rng([index, number])).save(folder / name / f"{number:03}.png")


def draw_face(person: int, rng: np.random.Generator) -> Image.Image:
    """Draw one picture of a person; light, position and expression are random."""
    own = np.random.default_rng(person)
    skin, hair, shirt = own.integers(90, 240, 3), own.integers(10, 160, 3), own.integers(0, 255, 3)
    width, eyes, fringe, mouth = own.uniform([0.24, 0.09, 0.18, 0.05], [0.34, 0.16, 0.34, 0.14])
    light, (x, y), smile = rng.uniform(0.75, 1.15), rng.uniform(-0.04, 0.04, 2), rng.uniform(-0.03, 0.05)
    picture = Image.new("RGB", (SIZE, SIZE), _color(rng.integers(60, 220, 3), light))
    draw = ImageDraw.Draw(picture)

    def ellipse(cx: float, cy: float, rx: float, ry: float, color: np.ndarray) -> None:
        box = [cx - rx + x, cy - ry + y, cx + rx + x, cy + ry + y]
        draw.ellipse([SIZE * side for side in box], fill=_color(color, light))

    ellipse(0.5, 1.05, 0.45, 0.25, shirt)
    ellipse(0.5, 0.42, width + 0.06, 0.38, hair)
    ellipse(0.5, 0.5, width, 0.34, skin)
    ellipse(0.5, 0.2, width, fringe / 2, hair)
    for side in (-1, 1):
        ellipse(0.5 + side * eyes, 0.45, 0.05, 0.035, np.full(3, 245))
        ellipse(0.5 + side * eyes, 0.45, 0.022, 0.03, hair // 2)
    ellipse(0.5, 0.68, mouth, 0.025, np.array([150, 40, 50]))
    ellipse(0.5, 0.68 - smile, mouth, 0.025, skin)
    return picture


def _color(color: np.ndarray, light: float) -> tuple[int, ...]:
    return tuple(int(min(255, channel * light)) for channel in color)


def configure(photos: pathlib.Path, person: str, pretrain_steps: int, unlearn_steps: int) -> Config:
    """Adapt the digits config to photos: pretrain on everyone, forget `person`, retain the rest."""
    raw = runpy.run_path(str(CONFIG))["get_config"]()
    raw.data.update(source="folder", path=str(photos), forget=(person,), retain=("rest",), flip=True)
    raw.model.update(pretrained="", image_size=32, pixel_mean=(0.5,) * 3, pixel_std=(0.25,) * 3)
    raw.pretrain.model.update(steps=pretrain_steps, warmup_steps=min(100, pretrain_steps // 2))
    raw.unlearn.update(steps=unlearn_steps, warmup_steps=min(20, unlearn_steps // 2))
    raw.audit.enabled = False  # `python -m l2l_jax.audit --workdir=…` attacks the result
    return parse_config(raw)


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the example, and return the content of the report's metrics.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=pathlib.Path, help="folder with a subfolder for each person")
    parser.add_argument("--person", default="bob", help="person to forget")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/forget_a_person"))
    parser.add_argument("--pretrain_steps", type=int, default=1000)
    parser.add_argument("--unlearn_steps", type=int, default=400)
    args = parser.parse_args(argv)
    photos = args.photos
    if photos is None:
        photos = args.workdir / "photos"
        if not photos.exists():
            draw_faces(photos)
    config = configure(photos, args.person, args.pretrain_steps, args.unlearn_steps)
    report = experiment.run(config, args.workdir / "run")
    print(console(report))
    print(f"\nReport: {args.workdir / 'run' / 'report' / 'report.html'}")
    return report


def program(argv: Sequence[str]) -> None:
    """Run `main` with the progress and error reporting of the package's programs."""
    main(argv[1:])


if __name__ == "__main__":
    sys.exit(run_program(program, sys.argv))
