"""Batched inpainting: results do not depend on batches, and random numbers depend on the set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.evals.image_set import Images
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.runner import BatchedRunner
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.mae.model import MAE
from tests.fixtures.configs import SIZES
from tests.train.families import params_of

SMALL_MAE = MAE(image_size=16, patch_size=4, **SIZES)
PARAMS = params_of(SMALL_MAE)


class Noise(MAE):
    """A model that fills the mask with noise of the key and a parameter, to expose the keys."""

    def inpaint(self, params, images, mask, rng):
        noise = jax.random.uniform(rng, images.shape) * params["scale"]
        return jax.numpy.where(mask[None, ..., None], noise, images)


def chosen(images, places):
    return Images(np.asarray(places), images, np.zeros(len(places), int))


@pytest.mark.parametrize("batch_size, threads", [(1, 1), (3, 3), (8, 1), (16, 3)])
def test_rows_are_padded_to_batches_of_one_shape(batch_size, threads):
    traced = []

    def compute(params, rows):
        traced.append(rows["x"].shape)
        return {"sum": params * rows["x"].sum(axis=1) + rows["y"], "x": rows["x"]}

    runner = BatchedRunner(compute, batch_size, threads=threads)
    for count in (0, 1, 8, 11):
        x = np.random.default_rng(0).integers(0, 99, (count, 5))
        result = runner(runner.place(np.int32(2)), {"x": x, "y": np.arange(count)})
        np.testing.assert_array_equal(result["sum"], 2 * x.sum(axis=1) + np.arange(count))
        np.testing.assert_array_equal(result["x"], x)
        assert isinstance(result["x"], np.ndarray)
    assert traced == [(batch_size, 5)]


@pytest.mark.parametrize("name", ["centre_8", "random_75"])
def test_reconstructions_do_not_depend_on_the_batches(name, one_device):
    (task,) = parse_tasks([name])
    images = np.random.default_rng(0).random((10, 16, 16, 3)).astype(np.float32)
    large, parts = (Inpainter(SMALL_MAE, task, batch_size=size, seed=0) for size in (16, 4))
    expected = large(large.place(PARAMS), chosen(images, range(10)), "retain")
    inpainted = [
        parts(parts.place(PARAMS), chosen(images[rows], rows), "retain")
        for rows in ([0, 1, 2], [3], [4, 5, 6, 7, 8, 9])
    ]
    np.testing.assert_allclose(expected, np.concatenate(inpainted), atol=1e-6)
    masks = large.masks("retain", np.arange(10))
    assert masks.shape == (10, 16, 16)
    np.testing.assert_array_equal(expected[~masks], images[~masks])
    assert (expected[masks] != images[masks]).any()
    same_masks = (large.masks("forget", np.arange(10)) == masks).all()
    assert same_masks == (name == "centre_8")  # random masks differ between sets
    gray = large.masked(chosen(images, range(10)), "retain")
    assert (gray[masks] == 0.5).all() and (gray[~masks] == images[~masks]).all()


def test_random_patches_are_inpainted_from_visible_patches():
    images = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    visible = jnp.array([[5, 6, 9, 10]])
    inpaint = jax.jit(lambda images: SMALL_MAE.inpaint_from_patches(PARAMS, images, visible))
    inpainted = np.asarray(inpaint(images))
    other = images.copy()
    other[0, 4:8, 12:] = 0  # patch 7
    np.testing.assert_array_equal(inpainted, inpaint(other))
    np.testing.assert_array_equal(inpainted[0, 4:8, 4:12], images[0, 4:8, 4:12])  # patches 5 and 6


def test_randomness_depends_on_the_image_and_its_set(one_device):
    model, (task,) = Noise(image_size=16, patch_size=4), parse_tasks(["centre_8"])

    inpainter_of = functools.cache(lambda seed: Inpainter(model, task, batch_size=4, seed=seed))

    def noise(set_name, places, seed=0):
        inpainter = inpainter_of(seed)
        images = chosen(np.zeros((len(places), 16, 16, 3), np.float32), places)
        return inpainter(inpainter.place({"scale": np.float32(1)}), images, set_name)[:, inpainter.mask]

    first = noise("retain", [0, 1, 2])
    np.testing.assert_array_equal(noise("retain", [2, 0]), first[[2, 0]])
    for other in (noise("forget", [0, 1, 2]), noise("retain", [1, 2, 3]), noise("retain", [0, 1, 2], seed=1)):
        assert (other != first).all(axis=(1, 2)).all()
    assert (first[0] != first[1]).mean() > 0.99
