"""Grids of test images and their reconstructions, drawn with matplotlib."""

import functools
import pathlib
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from l2l_jax.evals.evaluator import Evaluation

# Reconstructions of example images, by model, then by set
Inpainted = Mapping[str, Mapping[str, np.ndarray]]
COLORS = {"retain": "#1b6e3c", "forget": "#a3242b", "general": "#555555"}
# Fonts with East Asian glyphs, used if they are installed
FALLBACKS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAGothic", "Droid Sans Fallback")
MISSING = "▯"
PITCH = 1.06  # distance between adjacent images, in image widths
LEAST = 64  # minimum side of an image in pixels; smaller images are enlarged
EXAMPLES = 3  # number of images per set at the top of the report


def save_grid(path: pathlib.Path, evaluation: Evaluation, inpainted: Inpainted) -> None:
    """Draw a PNG with a column for each test image and a row for each model, one set below the other."""
    grid, line = _Grid(evaluation, inches=0.85, dpi=120), 0.0
    for name, examples in evaluation.shown.items():
        if any(name not in sets for sets in inpainted.values()):
            continue
        grid.write_left(line, name.upper(), far=True, color=COLORS[name], weight="bold")
        for column, class_id in enumerate(examples.labels):
            grid.write_above(line, column, label(evaluation.class_names[class_id], 11), color=COLORS[name])
        for title, images in _rows(evaluation, name, inpainted).items():
            grid.write_left(line, title)
            grid.draw(line, images)
            line += 1
        line += 0.6
    grid.save(path)


def save_methods(path: pathlib.Path, evaluation: Evaluation, inpainted: Inpainted) -> None:
    """Draw a PNG with a column for each model and a row for each test image."""
    grid, line = _Grid(evaluation, inches=0.5, dpi=150), 0
    for column, title in enumerate(["image", "input", *inpainted]):
        grid.write_above(0, column, title, rotation=30, ha="left")
    for name, examples in evaluation.shown.items():
        middle = line + len(examples.labels) // 2
        grid.write_left(middle, name.upper(), far=True, color=COLORS[name], weight="bold")
        columns = _rows(evaluation, name, inpainted).values()
        for class_id, *row in zip(examples.labels, *columns, strict=True):
            grid.write_left(line, label(evaluation.class_names[class_id], 12), color=COLORS[name])
            grid.draw(line, row)
            line += 1
        line += 1  # an empty line between the sets
    grid.save(path)


def save_examples(path: pathlib.Path, evaluation: Evaluation, inpainted: Inpainted, name: str) -> None:
    """Draw a PNG with a few large images of a set: a row for each image, a column for each model."""
    labels = evaluation.shown[name].labels
    firsts = [int(np.flatnonzero(labels == class_id)[0]) for class_id in np.unique(labels)]
    chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(EXAMPLES, len(firsts))).astype(int)]
    grid, columns = _Grid(evaluation, inches=1.05, dpi=160), _rows(evaluation, name, inpainted)
    for column, title in enumerate(columns):
        grid.write_above(0, column, title)
    for line, index in enumerate(chosen):
        text = label(evaluation.class_names[labels[index]], 14)
        grid.write_left(line, text, rotation=90, color=COLORS[name])
        grid.draw(line, [images[index] for images in columns.values()])
    grid.save(path)


def _rows(evaluation: Evaluation, name: str, inpainted: Inpainted) -> dict[str, np.ndarray]:
    """Return the example images of a set, their corrupted inputs and reconstructions, by title."""
    models = {model: sets[name] for model, sets in inpainted.items()}
    return {"image": evaluation.shown[name].images, "input": evaluation.masked(name), **models}


class _Grid:
    """Images and titles on a single pair of axes, because axes for each image take ten times as long."""

    def __init__(self, evaluation: Evaluation, inches: float, dpi: int):
        self._figure, self._inches = Figure(dpi=dpi), inches
        self._axis = self._figure.add_axes((0, 0, 1, 1))
        self._low, self._high = evaluation.inpainter.value_range
        self._lines: list[tuple[float, list[np.ndarray]]] = []

    def draw(self, line: float, images: Iterable[np.ndarray]) -> None:
        """Draw a row of images."""
        unit = (np.clip((pixels - self._low) / (self._high - self._low), 0, 1) for pixels in images)
        self._lines.append((line, [np.round(255 * pixels).astype(np.uint8) for pixels in unit]))

    def write_left(self, line: float, text: str, *, far: bool = False, **style: Any) -> None:
        """Write text to the left of a row; `far` leaves room for another text."""
        x = -1.1 / self._inches if far else -0.1
        self._write(x, line * PITCH + 0.5, text, dict(va="center", ha="right") | style)

    def write_above(self, line: float, column: int, text: str, **style: Any) -> None:
        """Write text above a column of the block of images that starts at a row."""
        at = column * PITCH + 0.5, line * PITCH - 0.06
        self._write(*at, text, dict(va="bottom", ha="center") | style)

    def _write(self, x: float, y: float, text: str, style: Mapping[str, Any]) -> None:
        self._axis.text(x, y, text, fontsize=9, family=families(), **style)

    def save(self, path: pathlib.Path) -> None:
        """Write the PNG file."""
        lines = self._lines[-1][0] * PITCH + 1
        columns = (max(len(images) for _, images in self._lines) - 1) * PITCH + 1
        size = self._lines[0][1][0].shape[0]
        factor = -(-LEAST // size)
        size *= factor
        canvas = np.full((round(lines * size), round(columns * size), 3), 255, np.uint8)
        for line, images in self._lines:
            for column, pixels in enumerate(images):
                top, left = round(line * PITCH * size), round(column * PITCH * size)
                enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
                canvas[top : top + size, left : left + size] = enlarged
        self._figure.set_size_inches(self._inches * columns, self._inches * lines)
        self._axis.imshow(canvas, interpolation="nearest", extent=(0, columns, lines, 0), aspect="auto")
        self._axis.axis("off")
        self._figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def label(name: object, width: int = 16) -> str:
    """Format a user's name for a plot: no math, at most two lines of `width`, unknown glyphs replaced."""
    available = set().union(*(_glyphs(family) for family in families()))
    text = "".join(c if ord(c) in available or c.isspace() else MISSING for c in str(name))
    lines = [line.replace("_ ", "_") for line in textwrap.wrap(text.replace("_", "_ "), width)]
    if len(lines) > 2:
        lines = [lines[0], f"{lines[1][: width - 1]}…"]
    return "\n".join(lines).replace("$", r"\$")


@functools.cache
def families() -> tuple[str, ...]:
    """Return the font families for labels, in order of preference."""
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont(family)).get_charmap())
