"""Evaluation masks compared with hand-drawn masks; training masks: shapes, sizes and reproducibility."""

import numpy as np
import pytest

from l2l_jax import masks
from l2l_jax.masks import MASKS

BY_HAND = dict(centre="... .#. ...", border="### #.# ###", left="#.. #.. #..")
BY_HAND |= dict(right="..# ..# ..#", top="### ... ...", bottom="... ... ###")


@pytest.mark.parametrize("name", BY_HAND)
def test_masks(name):
    drawn = [[pixel == "#" for pixel in row] for row in BY_HAND[name].split()]
    np.testing.assert_array_equal(MASKS[name](3, 1), drawn)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda width=width: MASKS["centre"](16, width) for width in (0, 7, 16)),
        lambda: MASKS["left"](16, 16),
        lambda: MASKS["border"](16, 8),
        lambda: masks.side_mask(8, 2, "middle"),
        lambda: masks.mask_bank("circle", 3, 32, seed=0),
        lambda: masks.mask_bank("box", 0, 32, seed=0),
    ],
)
def test_invalid_masks_raise_errors(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("size, sides, margin", [(256, (108, 128), 20), (64, (27, 32), 5)])
def test_boxes_are_rectangles_within_their_bounds(size, sides, margin):
    heights, widths = set(), set()
    for mask in masks.mask_bank("box", 300, size, seed=0):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        heights.add(int(np.ptp(rows)) + 1)
        widths.add(int(np.ptp(columns)) + 1)
        assert mask.sum() == len(rows) * len(columns) and mask[np.ix_(rows, columns)].all()
        assert min(rows[0], columns[0]) >= margin
        assert max(rows[-1], columns[-1]) < size - margin
    assert (min(heights), max(heights)) == (min(widths), max(widths)) == sides


def test_stroke_covers_pixels_near_its_lines():
    """Compared with the distance of every pixel to the zigzag; tolerance of one pixel for the rasterizer."""
    vertices = np.array([[10.0, 12.0], [50.0, 20.0], [22.0, 55.0], [22.0, 55.0]])
    mask = masks.stroke_mask(vertices, 9, 64)
    pixels = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).astype(float)
    distance = np.full((64, 64), np.inf)
    for a, b in zip(vertices[:-1], vertices[1:], strict=True):
        along = np.clip((pixels - a) @ (b - a) / max(np.sum((b - a) ** 2), 1e-9), 0, 1)
        nearest = a + along[..., None] * (b - a)
        distance = np.minimum(distance, np.linalg.norm(pixels - nearest, axis=-1))
    assert mask[distance < 3.5].all() and not mask[distance > 5.5].any()


def test_strokes_zigzag_inside_the_image():
    rng = np.random.default_rng(0)
    lines = set()
    for _ in range(200):
        vertices = masks.stroke_vertices(rng, 256)
        assert vertices.min() >= 0 and vertices.max() < 256
        moves = np.diff(vertices, axis=0)
        lines.add(len(moves))
        assert np.linalg.norm(moves, axis=1).max() <= np.sqrt(2) * 256 / 4 + 1e-9
        assert (moves[::2, 1] <= 0).all() and (moves[1::2, 1] >= 0).all()
    assert lines == set(range(4, 12))


@pytest.mark.parametrize("size", [16, 64, 256])
def test_hybrid_masks_are_similar_at_every_size(size):
    bank = masks.mask_bank("hybrid", 400, size, seed=1)
    assert bank.shape == (400, size, size) and bank.dtype == bool
    # Masks drawn at 256 pixels with the released parameters hide 0.327 on average, with a standard
    # deviation of 0.065 among masks; 0.03 leaves room for lengths rounded to pixels.
    assert abs(bank.mean() - 0.33) < 0.03
    assert bank.mean((1, 2)).min() > 0.15 and bank.mean((1, 2)).max() < 0.75
    box = masks.box_mask(np.random.default_rng(1), size)  # the first mask contains the first box
    assert (bank[0] >= box).all() and bank[0].sum() > box.sum()


def test_banks_are_reproducible():
    first = masks.mask_bank("free_form", 3, 32, seed=7)
    np.testing.assert_array_equal(first, masks.mask_bank("free_form", 3, 32, seed=7))
    assert (first != masks.mask_bank("free_form", 3, 32, seed=8)).any()
    centered = np.zeros((1, 32, 32), bool)
    centered[0, 8:24, 8:24] = True
    np.testing.assert_array_equal(masks.mask_bank("centre", 3, 32, seed=7), centered)
