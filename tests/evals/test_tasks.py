"""Masks of the tasks, with pixels counted by hand."""

import re

import numpy as np
import pytest

from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.tasks import GROUPS, parse_tasks, patch_masks
from l2l_jax.models.mae.model import MAE
from l2l_jax.models.palette.model import Palette

SMALL = MAE(image_size=16, patch_size=4)


def task(name):
    (parsed,) = parse_tasks([name])
    return parsed


# 4×4 of the 16×16 patches of 16 pixels; 8 pixels on every side.
HIDDEN = {("centre_4", 256): 64 * 64, ("border_1", 256): 256**2 - 240**2, ("left_8", 16): 8 * 16}
HIDDEN |= {("centre_8", size): (size // 2) ** 2 for size in (224, 256)} | {("border_13", 256): 256**2 - 48**2}


@pytest.mark.parametrize(("name", "size"), HIDDEN)
def test_number_of_hidden_pixels(name, size):
    missing = HIDDEN[name, size]
    mask = task(name).mask(size)
    assert mask.shape == (size, size) and mask.sum() == missing and task(name).name == name


def test_task_groups():
    assert [t.name for t in parse_tasks(["paper"])] == ["centre_8", "centre_4"]
    assert [t.title for t in parse_tasks(["border_1", "outpainting"])] == [
        f"border {width}/32" for width in range(1, 14)
    ]
    assert {name for group in GROUPS.values() for name in group} >= {"left_8", "right_8", "top_8", "bottom_8"}


def test_random_patches_have_the_specified_number_and_depend_on_the_image():
    visible = task("random_75").visible_patches(16, [(0, 1), (0, 2), (0, 1)])
    assert visible.shape == (3, 4) and (np.diff(visible, axis=1) > 0).all()
    np.testing.assert_array_equal(visible[0], visible[2])
    assert (visible[0] != visible[1]).any()
    masks = patch_masks(visible, 4, 8)
    assert masks.shape == (3, 8, 8) and (masks.sum(axis=(1, 2)) == 12 * 4).all()
    row, column = divmod(visible[0, 0], 4)
    assert not masks[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].any()
    # Each patch is hidden in about three of four images: 400 samples, standard deviation 0.022.
    often = patch_masks(task("random_75").visible_patches(16, ((i,) for i in range(400))), 4, 4).mean(axis=0)
    assert np.abs(often - 0.75).max() < 0.1


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("center_8", "there is no task 'center_8'; known: centre_N"),
        ("centre_8,left", "there is no task 'left'"),
        ("border_0", "there is no task 'border_0'"),
        ((), "tasks names none"),
    ],
)
def test_unknown_tasks_are_rejected(tasks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluationConfig(tasks=tasks.split(",") if isinstance(tasks, str) else tasks)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("centre_16", MAE(), "the task centre_16: a centered mask in 224 pixels"),
        ("border_3", SMALL, "hides 3/32 of 16 pixels, which is not a whole number"),
        ("random_75", Palette(), "random_75 is for masked autoencoders"),
        ("random_1", SMALL, "hides 0 of 16 patches"),
    ],
)
def test_tasks_unsupported_by_the_model_are_rejected(name, model, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(tasks=(name,)).check(model)
    EvaluationConfig(tasks=("centre_8", "left_4")).check(model)
