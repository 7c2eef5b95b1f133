"""The other methods against what their releases compute."""

import functools

import jax
import numpy as np
import pytest

from l2l_jax.methods.base import total_loss
from l2l_jax.methods.baselines import (
    max_loss_task,
    noisy_label_task,
    random_encoder_task,
    retain_label_task,
)
from l2l_jax.models.mage.networks import draw_noise_codes
from tests.methods.gradients import grad_fn
from tests.models import test_mage, test_palette_unlearning
from tests.models.test_palette_unlearning import DRAW, IMAGES, ORDERED, by_label, forward, rows
from tests.reference_arrays import nhwc

PALETTE, MAGE = test_palette_unlearning.TINY, test_mage.TINY
PALETTE_CASE, MAGE_CASE = test_palette_unlearning.CASE, test_mage.UNLEARN
ALPHA = 0.25
RETAIN, FORGET = [0, 1], [2, 3]  # rows of both reference batches


# The releases, which divide by the whole batch of four: half of our losses.


@pytest.fixture(scope="module")
def palette():
    """Student, teacher, what the student sees, and that with pure noise inside the mask."""
    load, parts = test_palette_unlearning.mapping.to_flax, test_palette_unlearning.parts_of(PALETTE)
    student, teacher = (
        load(test_palette_unlearning.TABLE, PALETTE_CASE.state_dict(prefix), parts)
        for prefix in ("", "teacher:")
    )
    seen, hidden = test_palette_unlearning.views()
    return student, teacher, seen, hidden


def check_palette(name, task, student, frozen, inputs):
    trained = {part: student[part] for part in task.trained}
    (loss, _), grads = jax.device_get(grad_fn(task, ALPHA)(trained, frozen, inputs))
    test_palette_unlearning.check(name, loss / 2, jax.tree.map(lambda g: g / 2, grads))


NOISY_LABEL = noisy_label_task(PALETTE)
noisy_truth = jax.jit(PALETTE.noisy_truth)


def test_palette_max_loss(palette):
    student, _, seen, _ = palette
    views = {"images": IMAGES, "seen": seen}
    inputs = {"retain": rows(views, RETAIN), "forget": rows(views, FORGET)}
    check_palette("max_loss", max_loss_task(PALETTE), student, {}, inputs)


@pytest.mark.parametrize("name", ["noisy_label", "noisy_label_mixed"])
def test_palette_noisy_label(palette, name):
    student, _, seen, _ = palette
    labels = PALETTE_CASE["labels_mixed"] if name.endswith("mixed") else ORDERED
    views = {"images": IMAGES, "seen": seen}
    truth = noisy_truth(IMAGES, seen, np.zeros_like(IMAGES), jax.random.key(0))
    noisy = dict(zip(("images", "seen"), truth, strict=True))
    inputs = {"retain": rows(views, labels > 0), "forget": rows(noisy, labels < 0)}
    check_palette(name, NOISY_LABEL, student, {}, inputs)


def test_palette_retain_label(palette):
    """Forget rows 2 and 3 are paired with retain rows 0 and 1, as we pair them."""
    student, teacher, seen, _ = palette
    target = rows(forward(teacher, seen["inputs"], DRAW["gamma"])[1], RETAIN)
    inputs = {
        "retain": {"seen": rows(seen, RETAIN), "target": target},
        "forget": {"seen": rows(seen, FORGET), "target": target},
    }
    check_palette("retain_label", retain_label_task(PALETTE), student, {}, inputs)


def test_palette_random_encoder(palette):
    """With the release's draws and its statistics, which are not ours: see `random_encoder_task`."""
    student, teacher, seen, hidden = palette
    composite = by_label(ORDERED, seen, hidden)["inputs"]
    features = [np.asarray(f) for f in forward(teacher, composite, DRAW["gamma"])[0]]
    drawn = [nhwc(PALETTE_CASE[f"drawn/random_encoder/{i}"]) for i in range(len(features))]
    noise = tuple(d * f.std(ddof=1) + f.mean() for d, f in zip(drawn, features, strict=True))
    inputs = {
        "retain": {"seen": rows(seen, RETAIN), "target": rows(tuple(features), RETAIN)},
        "forget": {"seen": rows(seen, FORGET), "target": rows(noise, FORGET)},
    }
    task = random_encoder_task(PALETTE)
    check_palette("random_encoder", task, student, {}, inputs)


def test_mage_max_loss():
    seen = test_mage.unlearning_case("student", slice(0, 4))
    views = {"images": np.zeros((4, 1, 1, 1), np.float32), "seen": seen}  # only codes are read
    inputs = {"retain": rows(views, RETAIN), "forget": rows(views, FORGET)}
    task = max_loss_task(MAGE)
    params = test_mage.tiny_params()
    trained = {part: params[part] for part in task.trained}
    (loss, terms), grads = jax.device_get(grad_fn(task, ALPHA)(trained, {}, inputs))
    np.testing.assert_allclose(loss / 2, MAGE_CASE["baseline/loss"], atol=5e-6)
    for name in ("retain", "forget"):
        np.testing.assert_allclose(terms[name] / 2, MAGE_CASE[f"baseline/{name}_loss"], atol=5e-6)
    halves = jax.tree.map(lambda g: g / 2, grads)
    test_mage.assert_gradients(halves, MAGE_CASE, "baseline/grad/")


def test_mage_random_encoder():
    """The retain term is the release's; the forget term is on forget rows, where its is not."""
    latent, guide, target = (
        MAGE_CASE[name] for name in ("shared_vqgan/latent", "shared_vqgan/guide", "shared_vqgan/mis_guide")
    )
    seen = test_mage.unlearning_case("student", slice(0, 4))
    inputs = {
        "retain": {"seen": rows(seen, RETAIN), "target": guide[RETAIN]},
        "forget": {"seen": rows(seen, FORGET), "target": target[FORGET]},
    }
    task = random_encoder_task(MAGE)
    trained = {"encoder": test_mage.tiny_params()["encoder"]}
    loss, terms = jax.jit(functools.partial(total_loss, task, alpha=ALPHA))(trained, {}, inputs)
    np.testing.assert_allclose(terms["retain"], MAGE_CASE["shared_vqgan/retain_loss"], rtol=3e-6)
    forget = np.square(latent[FORGET].astype(float) - target[FORGET]).mean()
    np.testing.assert_allclose(terms["forget"], forget, rtol=3e-6)
    np.testing.assert_allclose(loss, terms["retain"] + ALPHA * forget, rtol=3e-6)
    on_retain_rows = np.square(latent[RETAIN].astype(float) - target[RETAIN]).mean()
    assert abs(terms["forget"] / on_retain_rows - 1) > 1e-3


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
    # Two standard deviations lie between 0 and 63: a sixth of the draws falls on either side.
    assert np.all(np.abs(np.bincount(drawn.ravel())[[0, 63]] / 2000 - 0.165) < 0.05)


def test_mage_has_noise_codes_as_its_truth():
    model, images = test_mage.DIGITS, np.zeros((50, 16, 16, 3), np.float32)
    codes = np.random.default_rng(0).integers(2, 6, (50, 16), np.int32)
    masks = np.random.default_rng(1).random((50, 16), np.float32)

    @jax.jit
    def before_and_after(images):
        seen = model.mask(codes, masks, num_drop=8, num_mask=10)
        same, noisy = model.noisy_truth(images, seen, images, jax.random.key(0))
        assert same is images
        return seen, noisy

    seen, noisy = jax.device_get(before_and_after(images))
    assert noisy.keys() == seen.keys()
    for name in set(seen) - {"targets"}:
        np.testing.assert_array_equal(noisy[name], seen[name])
    drawn = np.asarray(noisy["targets"])
    assert 0.1 < np.mean(drawn == codes) < 0.5 and abs(drawn.mean() - codes.mean()) < 0.2
