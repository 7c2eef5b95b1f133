"""Targets of forget images."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from l2l_jax.methods import METHODS
from l2l_jax.methods.inputs import blurred, forget_truth
from tests.fixtures.linear import BATCH, LINEAR, TEACHER
from tests.fixtures.steps import prepared
from tests.matrix import cells
from tests.train.families import MODELS, images_of, params_of

blur = jax.jit(blurred, static_argnums=1)


def test_blur_matches_scipy():
    """The center of a large image is not affected by the borders."""
    images = np.random.default_rng(0).random((2, 40, 40, 3), np.float32)
    expected = scipy.ndimage.gaussian_filter(images.astype(float), (0, 2, 2, 0), truncate=10)
    np.testing.assert_allclose(
        np.asarray(blur(images, 2.0))[:, 18:22, 18:22], expected[:, 18:22, 18:22], atol=1e-4
    )
    np.testing.assert_allclose(blur(np.ones((1, 8, 8, 3), np.float32), 3.0), 1, rtol=1e-5)  # keeps the sum


NORMAL = [("mae", "mean"), ("palette", "blur"), ("latent_diffusion", "mean")]
CELLS = cells(MODELS, ("mean", "blur"), normal=NORMAL)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_targets_other_than_noise(family, kind):
    """The target of hidden pixels is the other image; visible pixels are unchanged."""
    model, params = MODELS[family], params_of(MODELS[family])
    (batch,) = images_of(family, 1, 4)

    def prepare(params, batch, key):
        views = {
            split: {"images": x, "corrupted": model.corrupt(params, x, key)} for split, x in batch.items()
        }
        return views, forget_truth(model, params, views, key, kind, blur=0.25)

    views, targets = jax.jit(prepare)(params, batch, jax.random.key(0))
    forget = np.asarray(batch["forget"])
    truth = (
        np.broadcast_to(batch["retain"].mean(axis=0), forget.shape)
        if kind == "mean"
        else np.asarray(blur(forget, model.image_size / 4))
    )
    corrupted, before = targets["corrupted"], views["forget"]["corrupted"]
    if family == "mae":
        np.testing.assert_allclose(targets["images"], truth, atol=1e-6)
        np.testing.assert_array_equal(corrupted["patches"], before["patches"])
    elif family == "mage":
        np.testing.assert_array_equal(corrupted["targets"], jax.jit(model.tokenize)(params, truth))
        np.testing.assert_array_equal(corrupted["ids"], before["ids"])
    elif family == "latent_diffusion":
        means = jax.jit(model.encode_images)(params, truth, np.zeros((1, 8, 8, 1), bool))[..., :4]
        clean = np.where(before["mask"], means, before["clean"])
        alphas = model.schedule.alphas()[np.asarray(before["timesteps"])][:, None, None, None]
        noisy = np.sqrt(alphas) * clean + np.sqrt(1 - alphas) * np.asarray(before["noise"])
        np.testing.assert_allclose(corrupted["inputs"][..., :4], noisy, atol=1e-5)
        np.testing.assert_array_equal(corrupted["inputs"][..., 4:], before["inputs"][..., 4:])
    else:
        gamma = np.asarray(before["gamma"])[:, None, None, None]
        noisy = np.sqrt(gamma) * truth + np.sqrt(1 - gamma) * np.asarray(before["noise"])
        mask = np.asarray(before["mask"])[..., None]
        np.testing.assert_allclose(corrupted["inputs"][..., 3:], np.where(mask, noisy, forget), atol=1e-5)
        np.testing.assert_array_equal(corrupted["inputs"][..., :3], before["inputs"][..., :3])


@pytest.mark.parametrize("method", ["undo", "relearn_aware"])
def test_target_options_of_methods(method):
    model, (batch,) = MODELS["mae"], images_of("mae", 1, 4)
    every = {"forget_every": 1} if method == "undo" else {}
    objective = METHODS[method](target="blur", target_blur=0.5, **every).objective(model)
    result = prepared(objective, params_of(model), batch)["forget"]["images"]
    np.testing.assert_allclose(result, blur(batch["forget"], 0.5 * model.image_size), atol=1e-6)


def test_unknown_target():
    with pytest.raises(ValueError, match="target must be noise, blur or mean, not 'grey'"):
        prepared(METHODS["undo"](target="grey").objective(LINEAR), TEACHER, BATCH)
