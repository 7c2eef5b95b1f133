"""The compiled training step of methods compared with their released code.

The released code divides by the full batch of four, half retain and half forget images: its losses, terms and
gradients are half of ours.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from l2l_jax.losses import feature_distance
from l2l_jax.methods import METHODS
from l2l_jax.models import mapping
from l2l_jax.models.mage.networks import draw_noise_codes
from l2l_jax.models.palette.convert import UNET
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.step import create_state, make_step
from tests.fixtures.steps import step
from tests.matrix import soak
from tests.models import test_mae, test_mage
from tests.models.test_unet import TINY as PALETTE
from tests.models.test_unet import parts_of
from tests.reference_arrays import Case, nhwc

ALPHA = 0.25
MAE, MAGE = test_mae.TINY, test_mage.TINY
MAE_CASE, MAGE_CASE, PALETTE_CASE = test_mae.CASE, test_mage.UNLEARN, Case("palette_process")
RETAIN, FORGET = [0, 1], [2, 3]  # rows of both reference batches
ORDERED, MIXED = PALETTE_CASE["labels"], PALETTE_CASE["labels_mixed"]  # +1 retain, −1 forget
IMAGES = nhwc(PALETTE_CASE["y_0"])
MASK = PALETTE_CASE["mask"][:, 0].astype(bool)


def objective(method, model):
    return METHODS[method]().objective(model)


OBJECTIVES = {name: objective(name, PALETTE) for name in METHODS}


def rows(tree, chosen):
    return jax.tree.map(lambda x: np.asarray(x)[chosen], tree)


@functools.cache
def palette(prefix=""):
    """The student, or with "teacher:" the teacher."""
    weights = PALETTE_CASE.state_dict(prefix)
    return mapping.to_flax(UNET, weights, parts_of(PALETTE)) | {"holes": None}


@functools.cache
def palette_views():
    """Return the student's input, that with pure noise in the mask, and the release's mixture of both."""
    draw = {
        "mask": MASK,
        "gamma": PALETTE_CASE["sample_gammas"][:, 0],
        "filling": nhwc(PALETTE_CASE["y_cond"]),  # only pixels inside the mask are read
        "noise": nhwc(PALETTE_CASE["noise"]),
    }
    corrupted = jax.device_get(jax.jit(PALETTE.corrupt_with)(IMAGES, draw))
    hidden = jax.device_get(jax.jit(PALETTE.pure_noise_inside)(corrupted))
    mixture = jax.tree.map(
        lambda x, y: np.where((ORDERED > 0).reshape(-1, *[1] * (np.ndim(x) - 1)), x, y), corrupted, hidden
    )
    return corrupted, hidden, mixture


encode_palette = jax.jit(PALETTE.encode)


@functools.cache
def palette_features(prefix):
    """Return features of the release's mixture (for "teacher:") or of the corrupted images."""
    corrupted = palette_views()[2 if prefix else 0]
    return jax.device_get(encode_palette(palette(prefix)["encoder"], corrupted))


def test_inputs_of_student_and_teacher_of_palette():
    corrupted, _, mixture = palette_views()
    np.testing.assert_array_equal(corrupted["inputs"], nhwc(PALETTE_CASE["unet_in_student"]))
    np.testing.assert_allclose(mixture["inputs"], nhwc(PALETTE_CASE["unet_in_teacher"]), atol=2.5e-7)
    noisy = np.where(MASK[..., None], nhwc(PALETTE_CASE["q_sample_noisy"]), IMAGES)
    np.testing.assert_allclose(mixture["inputs"][..., 3:], noisy, atol=2.5e-7)


def palette_inputs(method, labels):
    """Return the inputs that our methods prepare, with the random numbers of the release."""
    corrupted, hidden, _ = palette_views()
    retain, forget = labels > 0, labels < 0
    if method in ("max_loss", "noisy_label"):
        views = noisy = {"images": IMAGES, "corrupted": corrupted}
        if method == "noisy_label":
            truth = jax.jit(PALETTE.noisy_truth)(IMAGES, corrupted, 0 * IMAGES, jax.random.key(0))
            noisy = dict(zip(("images", "corrupted"), truth, strict=True))
        return {"retain": rows(views, retain), "forget": rows(noisy, forget)}
    inputs = {"retain": rows(corrupted, retain), "forget": rows(corrupted, forget)}
    if method == "encoder":
        inputs["noise"] = rows(hidden, forget)
    if method == "random_encoder":  # uses the release's statistics, which differ from ours
        features = palette_features("teacher:")
        drawn = [nhwc(PALETTE_CASE[f"drawn/random_encoder/{i}"]) for i in range(len(features))]
        noise = tuple(d * f.std(ddof=1) + f.mean() for d, f in zip(drawn, features, strict=True))
        inputs |= {"teacher": rows(tuple(features), retain), "noise": rows(noise, forget)}
    return inputs


NAMES = ("encoder", "encoder_mixed")
OTHERS = ("noisy_label", "noisy_label_mixed", "max_loss", "random_encoder", "retain_label")
"""In every run, test_by_hand.py compares all methods with NumPy, and MAGE's release covers two of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *map(soak, OTHERS)])
def test_palette(name):
    """In "mixed", retain and forget rows alternate in the batch of the release."""
    method, labels = name.removesuffix("_mixed"), MIXED if name.endswith("mixed") else ORDERED
    inputs = palette_inputs(method, labels)
    metrics, gradient = step(OBJECTIVES[method], palette(), palette("teacher:"), inputs, ALPHA)
    name = name.replace("encoder", "ours") if method == "encoder" else name
    np.testing.assert_allclose(metrics["loss"] / 2, PALETTE_CASE[f"loss/{name}"], rtol=3e-6)
    np.testing.assert_allclose(metrics["grad_norm"] / 2, PALETTE_CASE[f"gradnorm/{name}"], rtol=1e-5)
    state_dict = mapping.to_torch(UNET, gradient)
    expected = [key for key in PALETTE_CASE._arrays.files if key.startswith(f"grad/{name}/")]
    assert expected
    for key in expected:
        scale = np.abs(PALETTE_CASE[key]).max()
        half = state_dict[key.removeprefix(f"grad/{name}/")] / 2
        np.testing.assert_allclose(half / scale, PALETTE_CASE[key] / scale, atol=1e-4, err_msg=key)


def test_palette_map_by_map():
    pairs = zip(palette_features(""), palette_features("teacher:"), strict=True)
    weights = np.where(ORDERED > 0, 1, ALPHA) / 4
    terms = [np.sum(np.asarray(feature_distance(f, t)) * weights) for f, t in pairs]
    np.testing.assert_allclose(terms, PALETTE_CASE["ours_feature_losses"], rtol=3e-6)


@pytest.mark.soak  # every run covers the gradient, above, and the optimizer, in train/test_optim.py
def test_palette_three_steps_of_adam():
    objective, adam = OBJECTIVES["encoder"], optax.adam(5e-5)
    given = dataclasses.replace(objective, prepare=lambda frozen, inputs, rng, axis_name=None: inputs)
    one_device = Parallel(sharding.make_mesh(jax.devices()[:1]))
    update, losses = jax.jit(make_step(given, adam, TrainingConfig(), one_device, seed=0)), []
    state = create_state({"encoder": palette()["encoder"]}, adam, ema=False, alpha=ALPHA)
    for _ in range(4):
        state, metrics = update(state, palette("teacher:"), palette_inputs("encoder", ORDERED))
        losses.append(metrics["loss"] / 2)
    np.testing.assert_allclose(losses, PALETTE_CASE["adam_losses"], rtol=5e-6)


def mage_inputs():
    corrupted = test_mage.unlearning_case("student", slice(0, 4))
    return {"retain": rows(corrupted, RETAIN), "forget": rows(corrupted, FORGET)}


def test_mage_encoder():
    student, teacher = test_mage.tiny_params(), test_mage.tiny_params("teacher:")
    inputs = {**mage_inputs(), "noise": test_mage.unlearning_case("mis", slice(2, 4))}
    metrics, gradient = step(objective("encoder", MAGE), student, teacher, inputs, ALPHA)
    for name, value in (("loss", "total"), ("retain", "retain_loss"), ("forget", "forget_loss")):
        np.testing.assert_allclose(metrics[name], MAGE_CASE[f"shared_vqgan/{value}"], rtol=2e-6)
    test_mage.assert_gradients(gradient, MAGE_CASE, "shared_vqgan/grad/")
    np.testing.assert_allclose(metrics["grad_norm"], MAGE_CASE["shared_vqgan/grad_total_norm"], rtol=1e-5)


@pytest.mark.slow
def test_mage_max_loss():
    unread = np.zeros((2, 1, 1, 1), np.float32)  # only codes are used
    inputs = {split: {"images": unread, "corrupted": x} for split, x in mage_inputs().items()}
    params = test_mage.tiny_params()
    metrics, gradient = step(objective("max_loss", MAGE), params, params, inputs, ALPHA)
    for name, value in (("loss", "loss"), ("retain", "retain_loss"), ("forget", "forget_loss")):
        np.testing.assert_allclose(metrics[name] / 2, MAGE_CASE[f"baseline/{value}"], atol=5e-6)
    test_mage.assert_gradients(jax.tree.map(lambda g: g / 2, gradient), MAGE_CASE, "baseline/grad/")


@pytest.mark.soak  # every run covers its retain term, and all of it in test_by_hand.py
def test_mage_random_encoder():
    """The retain term matches the release; the forget term uses forget rows, unlike the release."""
    latent, guide, target = (MAGE_CASE[f"shared_vqgan/{name}"] for name in ("latent", "guide", "mis_guide"))
    inputs = {**mage_inputs(), "teacher": guide[RETAIN], "noise": target[FORGET]}
    params = test_mage.tiny_params()
    metrics, _ = step(objective("random_encoder", MAGE), params, params, inputs, ALPHA)
    np.testing.assert_allclose(metrics["retain"], MAGE_CASE["shared_vqgan/retain_loss"], rtol=3e-6)
    forget = np.square(latent[FORGET].astype(float) - target[FORGET]).mean()
    np.testing.assert_allclose(metrics["forget"], forget, rtol=3e-6)
    np.testing.assert_allclose(metrics["loss"], metrics["retain"] + ALPHA * forget, rtol=3e-6)


def test_mae_encoder_terms():
    """Retain rows with themselves as teacher give 0; forget rows are compared with the next original rows."""
    images, latent = nhwc(MAE_CASE["images"]), MAE_CASE["latent"].astype(float)
    corrupted = MAE.mask(images, MAE_CASE["noise"], kept=4)
    following = jax.tree.map(lambda x: np.roll(x, 1, axis=0), corrupted)
    params = test_mae.tiny_params()
    inputs = {"retain": corrupted, "forget": corrupted, "noise": following}
    metrics, _ = step(objective("encoder", MAE), params, params, inputs, ALPHA)
    forget = np.square(latent - np.roll(latent, 1, axis=0)).mean()
    np.testing.assert_allclose(metrics["forget"], forget, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], ALPHA * forget, rtol=1e-5)
    assert metrics["retain"] < 1e-9


def test_noise_codes_have_the_statistics_of_the_codes():
    codes = np.random.default_rng(0).normal(30, 4, (100, 256)).round().astype(np.int32)
    drawn = np.asarray(jax.jit(draw_noise_codes, static_argnums=2)(jax.random.key(0), codes, 64))
    assert drawn.dtype == np.int32 and drawn.shape == codes.shape
    count = codes.size
    assert abs(drawn.mean() - codes.mean()) < 5 * codes.std() / np.sqrt(count)
    variance = codes.var() + 1 / 12  # rounding
    assert abs(drawn.var() - variance) < 5 * variance * np.sqrt(2 / count)
    assert abs(np.corrcoef(drawn.ravel(), codes.ravel())[0, 1]) < 5 / np.sqrt(count)


def test_noise_codes_are_clipped_to_the_codebook():
    codes = np.where(np.arange(2000).reshape(20, 100) % 2, 63, 0).astype(np.int32)
    drawn = np.asarray(jax.jit(draw_noise_codes, static_argnums=2)(jax.random.key(0), codes, 64))
    assert (drawn.min(), drawn.max()) == (0, 63)
    # Two standard deviations are between 0 and 63: a sixth of the samples is clipped on either side.
    assert np.all(np.abs(np.bincount(drawn.ravel())[[0, 63]] / 2000 - 0.165) < 0.05)


def test_mage_uses_noise_codes_as_targets():
    model, images = test_mage.DIGITS, np.zeros((50, 16, 16, 3), np.float32)
    codes = np.random.default_rng(0).integers(2, 6, (50, 16), np.int32)
    masks = np.random.default_rng(1).random((50, 16), np.float32)

    @jax.jit
    def before_and_after(images):
        corrupted = model.mask(codes, masks, num_drop=8, num_mask=10)
        same, noisy = model.noisy_truth(images, corrupted, images, jax.random.key(0))
        assert same is images
        return corrupted, noisy

    corrupted, noisy = jax.device_get(before_and_after(images))
    assert noisy.keys() == corrupted.keys()
    for name in set(corrupted) - {"targets"}:
        np.testing.assert_array_equal(noisy[name], corrupted[name])
    drawn = np.asarray(noisy["targets"])
    assert 0.1 < np.mean(drawn == codes) < 0.5 and abs(drawn.mean() - codes.mean()) < 0.2
