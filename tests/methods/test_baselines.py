"""The other methods on a linear model against NumPy by hand, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax.losses import max_loss, noise_features, noisy_label_loss, random_encoder_loss, retain_label_loss
from l2l_jax.methods.baselines import (
    max_loss_task,
    noisy_label_task,
    random_encoder_task,
    retain_label_task,
)
from l2l_jax.models.base import Model
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.step import create_state, make_step
from l2l_jax.utils.batch_axis import draw_rows
from tests.matrix import soak
from tests.methods.gradients import grad_fn

ALPHA = 0.25


class Linear(Model):
    """12 pixels, of which T hides half → two features, of 5 and of 3 numbers → 12 pixels."""

    image_size, channels, value_range = 2, 3, (0.0, 1.0)
    corruption_parts = ("gain",)

    def init(self, rng):
        raise NotImplementedError

    inpaint = init

    def corrupt(self, params, images, rng, axis_name=None):
        pixels = images.reshape(-1, 12) * params["gain"]
        keep = draw_rows(lambda n: jax.random.bernoulli(rng, 0.5, (n, 12)), len(pixels), axis_name)
        return jnp.where(keep, pixels, 0)

    def encode(self, encoder_params, seen):
        z = seen @ encoder_params
        return {"five": z[:, :5], "three": z[:, 5:]}

    def predict(self, params, seen):
        features = self.encode(params["encoder"], seen)
        return jnp.concatenate([features["five"], features["three"]], axis=1) @ params["decoder"]

    def prediction_loss(self, predicted, images, seen):
        return self.imitation_loss(predicted, seen, images.reshape(-1, 12))

    def imitation_loss(self, predicted, seen, target):
        return jnp.square(predicted - target).mean(axis=1)

    def with_truth(self, params, images, seen, truth):
        return truth, seen


LINEAR = Linear()
RNG = np.random.default_rng(0)


def linear_params():
    encoder, decoder = RNG.normal(size=(12, 8)), RNG.normal(size=(8, 12))
    return {"encoder": encoder.astype(np.float32), "decoder": decoder.astype(np.float32)}


STUDENT, TEACHER = linear_params(), {**linear_params(), "gain": np.float32(2)}
BATCH = {name: RNG.random((400, 2, 2, 3), np.float32) ** k for name, k in (("retain", 1), ("forget", 3))}
TASKS = {
    "max_loss": max_loss_task(LINEAR),
    "noisy_label": noisy_label_task(LINEAR),
    "retain_label": retain_label_task(LINEAR),
    "random_encoder": random_encoder_task(LINEAR),
}

STATISTICS = ("noisy_label", "random_encoder")
"""Methods that draw with statistics of the whole batch: in every run, these on several devices."""


def parts(params, names):
    return {name: params[name] for name in names}


def prepared(task, batch=BATCH, seed=0):
    return jax.device_get(jax.jit(task.prepare)(parts(TEACHER, task.frozen), batch, jax.random.key(seed)))


def outputs_by_hand(seen, target, weight):
    """Σ weight · mean((seen W V − target)²), the terms, and the gradients; seen: two halves."""
    w, v = STUDENT["encoder"].astype(float), STUDENT["decoder"].astype(float)
    terms, grads = [], {"encoder": 0.0, "decoder": 0.0}
    for x, y, factor in zip(seen, target, (1, weight), strict=True):
        error = x @ w @ v - y
        slope = factor * 2 * error / error.size
        grads["decoder"] += (x @ w).T @ slope
        grads["encoder"] += x.T @ slope @ v.T
        terms.append(np.square(error).mean())
    return terms[0] + weight * terms[1], terms, grads


def check(task, inputs, expected):
    total, terms, grads = expected
    trained, frozen = parts(STUDENT, task.trained), parts(TEACHER, task.frozen)
    (loss, found), gradient = jax.device_get(grad_fn(task, ALPHA)(trained, frozen, inputs))
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose([found["retain"], found["forget"]], terms, rtol=1e-5)
    assert set(gradient) == set(grads)
    for part in grads:
        np.testing.assert_allclose(gradient[part], grads[part], atol=2e-6 * np.abs(grads[part]).max())


def views(inputs):
    """`(seen, images)`, each retain and forget, in float64."""
    return (
        [np.asarray(inputs[name][what], float).reshape(-1, 12) for name in ("retain", "forget")]
        for what in ("seen", "images")
    )


def assert_half_seen(seen, images):
    """T was applied to these images: twice the pixel, or nothing."""
    images = images.reshape(-1, 12)
    assert np.all((seen == 2 * images) | (seen == 0)) and 0.45 < np.mean(seen == 0) < 0.55


def test_max_loss():
    inputs = prepared(TASKS["max_loss"])
    for name, images in BATCH.items():
        np.testing.assert_array_equal(inputs[name]["images"], images)
        assert_half_seen(inputs[name]["seen"], images)
    assert np.any((inputs["retain"]["seen"] == 0) != (inputs["forget"]["seen"] == 0))
    seen, images = views(inputs)
    check(TASKS["max_loss"], inputs, outputs_by_hand(seen, images, -ALPHA))


def test_noisy_label():
    """Only the truth of forget images is noise, with the statistics of the batch."""
    inputs = prepared(TASKS["noisy_label"])
    np.testing.assert_array_equal(inputs["retain"]["images"], BATCH["retain"])
    for name, images in BATCH.items():
        assert_half_seen(inputs[name]["seen"], images)
    noise, pixels = inputs["forget"]["images"], np.stack(list(BATCH.values()))
    assert noise.shape == BATCH["forget"].shape and (noise.min(), noise.max()) == (0, 1)
    normal = pixels.mean() + pixels.std() * np.random.default_rng(1).standard_normal(10**6)
    expected = np.quantile(np.clip(normal, 0, 1), [0.2, 0.4, 0.5, 0.6, 0.8])
    np.testing.assert_allclose(np.quantile(noise, [0.2, 0.4, 0.5, 0.6, 0.8]), expected, atol=0.03)
    assert abs(np.corrcoef(noise.ravel(), BATCH["forget"].ravel())[0, 1]) < 5 / np.sqrt(noise.size)
    seen, images = views(inputs)
    check(TASKS["noisy_label"], inputs, outputs_by_hand(seen, images, ALPHA))


def test_retain_label():
    """Both halves are drawn to the original model's outputs on the retain half, row by row."""
    inputs = prepared(TASKS["retain_label"])
    for name, images in BATCH.items():
        assert_half_seen(inputs[name]["seen"], images)
    seen = [np.asarray(inputs[name]["seen"], float) for name in ("retain", "forget")]
    target = seen[0] @ TEACHER["encoder"].astype(float) @ TEACHER["decoder"].astype(float)
    check(TASKS["retain_label"], inputs, outputs_by_hand(seen, [target, target], ALPHA))


def test_random_encoder():
    inputs = prepared(TASKS["random_encoder"])
    seen = [np.asarray(inputs[name]["seen"], float) for name in ("retain", "forget")]
    assert_half_seen(seen[1], BATCH["forget"])
    original = [x @ TEACHER["encoder"].astype(float) for x in seen]
    target = [
        np.concatenate([inputs[name]["target"]["five"], inputs[name]["target"]["three"]], axis=1)
        for name in ("retain", "forget")
    ]
    np.testing.assert_allclose(target[0], original[0], atol=1e-5)
    both = np.stack(original)
    for columns in (slice(5), slice(5, 8)):  # every array has its own statistics
        noise, features = target[1][:, columns], both[..., columns]
        count = noise.size
        assert abs(noise.mean() - features.mean()) < 5 * features.std() / np.sqrt(count)
        assert abs(noise.std() / features.std() - 1) < 5 / np.sqrt(2 * count)
    w, total, terms, gradient = STUDENT["encoder"].astype(float), 0.0, [], 0.0
    for x, y, factor in zip(seen, target, (1, ALPHA), strict=True):
        error = x @ w - y
        share = np.repeat([1 / 5, 1 / 3], [5, 3]) / len(x)  # a mean for each array, then their sum
        terms.append(np.sum(error**2 * share))
        total += factor * terms[-1]
        gradient += x.T @ (factor * 2 * error * share)
    check(TASKS["random_encoder"], inputs, (total, terms, {"encoder": gradient}))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_plain_function_on_a_models_arrays(name):
    """The functions of arrays that the package offers, on what the model gives for the same draw."""
    inputs = prepared(TASKS[name])
    seen = [inputs[of]["seen"] for of in ("retain", "forget")]

    def losses():
        images = [inputs[of]["images"] for of in ("retain", "forget")]
        return map(functools.partial(LINEAR.generative_loss, STUDENT), images, seen)

    def arrays(measure):
        return measure(STUDENT, seen[0]), measure(TEACHER, seen[0]), measure(STUDENT, seen[1])

    def features(params, seen):
        return LINEAR.encode(params["encoder"], seen)

    plain = {
        "max_loss": lambda: max_loss(*losses(), alpha=ALPHA),
        "noisy_label": lambda: noisy_label_loss(*losses(), alpha=ALPHA),
        "retain_label": lambda: retain_label_loss(*arrays(LINEAR.predict), alpha=ALPHA),
        "random_encoder": lambda: random_encoder_loss(
            *arrays(features), inputs["forget"]["target"], alpha=ALPHA
        ),
    }
    trained, frozen = parts(STUDENT, TASKS[name].trained), parts(TEACHER, TASKS[name].frozen)
    (found, terms), _ = grad_fn(TASKS[name], ALPHA)(trained, frozen, inputs)
    loss, expected = jax.jit(plain[name])()
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for of in ("retain", "forget"):
        np.testing.assert_allclose(terms[of], expected[of], rtol=1e-5)


def test_noise_features_keep_structure_and_type():
    features = [jnp.full((4, 3), 2.0, jnp.bfloat16), {"map": jnp.arange(8.0).reshape(2, 2, 2)}]
    noise = jax.jit(noise_features)(features, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), noise) == jax.tree.map(
        lambda x: (x.shape, x.dtype), features
    )
    np.testing.assert_array_equal(noise[0], features[0])  # no deviation, no noise


@pytest.mark.parametrize("name", [name if name in STATISTICS else soak(name) for name in TASKS])
def test_eight_devices_and_accumulation_give_the_numbers_of_one_step(name):
    """One step of gradient descent: metrics and new parameters, statistics of the whole batch."""
    task, optimizer = TASKS[name], optax.sgd(0.1)
    batch = {of: images[:16] for of, images in BATCH.items()}

    def run(devices, accumulate, kind="jit"):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        parallel = make_parallel(mesh, kind)
        params = sharding.place(parts(STUDENT, task.trained), mesh)
        frozen = sharding.place(parts(TEACHER, task.frozen), mesh)
        state = create_state(params, optimizer, ema=False, alpha=ALPHA)
        config = TrainingConfig(steps=1, batch_size=16, learning_rate=0.1, accumulate=accumulate)
        step = make_step(task, optimizer, seed=3, config=config, parallel=parallel)
        state, metrics = parallel.compile(step, state)(state, frozen, parallel.rows(batch))
        return jax.device_get((state.params, metrics))

    params, metrics = run(1, 1)
    for part in task.trained:
        assert np.abs(params[part] - STUDENT[part]).max() > 1e-3
    for other in (run(8, 1), run(4, 2), run(4, 2, "pmap")):
        for part in task.trained:
            np.testing.assert_allclose(other[0][part], params[part], atol=1e-5)
        for term in metrics:
            np.testing.assert_allclose(other[1][term], metrics[term], rtol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_batches_of_different_shapes_are_refused(name):
    with pytest.raises(ValueError, match="one shape"):
        prepared(TASKS[name], {"retain": BATCH["retain"], "forget": BATCH["forget"][:2]})
