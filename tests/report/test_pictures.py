"""Image grids: each image is square, with its colors, in its row and column."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from l2l_jax.report import pictures
from tests.report.example import Shown

SETS = {"retain": (0, 1, 2), "forget": (3, 4)}
KINDS = ("image", "seen", "original", "unlearned")


def color(kind, label):
    """Return a unique color for every image, different from those of text."""
    return (40 + 50 * KINDS.index(kind), 30 + 40 * label, 200)


def images(kind, labels):
    plain = [np.broadcast_to(np.divide(color(kind, label), 255), (4, 4, 3)) for label in labels]
    return 2 * np.array(plain) - 1  # the model's range


def drawn(draw, tmp_path):
    """Return left, top, right and bottom of each image in the file, by kind and label."""
    evaluation = SimpleNamespace(
        shown={
            split: Shown(range(len(labels)), images("image", labels), labels)
            for split, labels in SETS.items()
        },
        masked=lambda split: images("seen", SETS[split]),
        class_names=("zero", "one", "two", "three", "four"),
        inpainter=SimpleNamespace(value_range=(-1, 1)),
    )
    restored = {kind: {split: images(kind, labels) for split, labels in SETS.items()} for kind in KINDS[2:]}
    draw(tmp_path / "grid.png", evaluation, restored)
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    boxes = {}
    for labels in SETS.values():
        for label in labels:
            for kind in KINDS:
                lines, columns = np.nonzero((pixels == color(kind, label)).all(axis=-1))
                box = boxes[kind, label] = (columns.min(), lines.min(), columns.max(), lines.max())
                width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
                assert width > 40 and abs(width - height) <= 2 and len(lines) == width * height
    return boxes


@pytest.mark.parametrize("draw", [pictures.save_grid, pictures.save_methods])
def test_every_image_has_its_position(draw, tmp_path):
    """A grid has a row for each kind, in each set; a comparison of methods has a column for each kind."""
    boxes = drawn(draw, tmp_path)
    along, across = (1, 0) if draw is pictures.save_grid else (0, 1)
    for labels in SETS.values():
        for label in labels:
            places = [boxes[kind, label] for kind in KINDS]
            assert len({box[across] for box in places}) == 1  # kinds of one image are aligned
            assert all(a[along + 2] < b[along] for a, b in zip(places, places[1:], strict=False))
        for kind in KINDS:
            places = [boxes[kind, label] for label in labels]
            assert all(a[across + 2] < b[across] for a, b in zip(places, places[1:], strict=False))
    assert max(boxes[kind, 2][3] for kind in KINDS) < min(boxes[kind, 3][1] for kind in KINDS)


LABELS = {"bob": "bob", "": "", r"\alpha^{2}": r"\alpha^{2}", "\N{HOT DOG}": pictures.MISSING}
LABELS |= {"golden retriever": "golden\nretriever", "002.Laysan_Albatross": "002.Laysan_\nAlbatross"}
LABELS |= {"001.Black_footed_Albatross": "001.Black_\nfooted_…", 200 * "x": f"{11 * 'x'}\n{10 * 'x'}…"}
LABELS["A$$AP"] = r"A\$\$AP"  # dollars are escaped for matplotlib


@pytest.mark.parametrize("name", LABELS)
def test_names_fit_above_an_image(name):
    assert pictures.label(name, 11) == LABELS[name]
