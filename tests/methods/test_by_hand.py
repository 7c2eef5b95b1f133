"""The compiled training step of every method on a linear model, compared with NumPy."""

import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import optax
import pytest

from l2l_jax.errors import UserError
from l2l_jax.methods import METHODS
from l2l_jax.methods.epsilon import Constrained
from l2l_jax.methods.undo import Undo
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.step import create_state, make_step
from l2l_jax.train.unlearning_config import UnlearningConfig
from tests.fixtures.linear import BATCH, LINEAR, STUDENT, TEACHER, ByHand
from tests.fixtures.steps import prepared, step
from tests.matrix import cells

ALPHA = 0.25
PLUGINS = pathlib.Path(__file__).parents[2] / "examples" / "plugins.py"
BOUNDS = (0.5, 4.0)
W0, V0 = TEACHER["encoder"].astype(float), TEACHER["decoder"].astype(float)
OPTIONS = {
    "undo": {"distill": 0.3, "feature_weight": 0.4, "forget_every": 4},
    "relearn_aware": {"attack_steps": 2, "attack_rate": 0.01},
}
OBJECTIVES = {name: METHODS[name](**OPTIONS.get(name, {})).objective(LINEAR) for name in METHODS}
OBJECTIVES["epsilon"] = dataclasses.replace(OBJECTIVES["epsilon"], rule=Constrained("forget", BOUNDS))


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, float).reshape(len(x), -1), tree)


def joined(features):
    return np.concatenate([features["five"], features["three"]], axis=1)


def encoder(inputs):
    hand, (r, f, n) = ByHand(), (inputs[split] for split in ("retain", "forget", "noise"))
    return hand, hand.features(r, r @ W0, 1), hand.features(f, n @ W0, ALPHA)


def generative(inputs, weight=ALPHA):
    hand, (r, f) = ByHand(), (inputs[split] for split in ("retain", "forget"))
    retain = hand.outputs(r["corrupted"], r["images"], 1)
    return hand, retain, hand.outputs(f["corrupted"], f["images"], weight)


def retain_label(inputs):
    hand, (r, f) = ByHand(), (inputs[split] for split in ("retain", "forget"))
    return hand, hand.outputs(r, r @ W0 @ V0, 1), hand.outputs(f, r @ W0 @ V0, ALPHA)


def random_encoder(inputs):
    hand = ByHand()
    retain = hand.features(inputs["retain"], inputs["retain"] @ W0, 1)
    np.testing.assert_allclose(joined(inputs["teacher"]), inputs["retain"] @ W0, atol=1e-5)
    return hand, retain, hand.features(inputs["forget"], joined(inputs["noise"]), ALPHA)


def whole(inputs):
    hand, retain, forget = encoder(inputs)
    r, f, n = (inputs[split] for split in ("retain", "forget", "noise"))
    return hand, retain + hand.outputs(r, r @ W0 @ V0, 1), forget + hand.outputs(f, n @ W0 @ V0, ALPHA)


def undo(inputs):
    hand, (r, f) = ByHand(), (inputs[split] for split in ("retain", "forget"))
    retain = 0.7 * hand.outputs(r["corrupted"], r["images"], 0.7)
    retain += 0.3 * hand.outputs(r["corrupted"], r["corrupted"] @ W0 @ V0, 0.3)
    forget = hand.outputs(f["corrupted"], f["images"], ALPHA)
    features = f.get("plain", f["corrupted"])
    return hand, retain, forget + 0.4 * hand.features(features, joined(f["noise"]), 0.4 * ALPHA)


def relearn_aware(inputs):
    """The attacker takes two signed steps on the retain loss; the forget gradient is evaluated there."""
    weights = {part: STUDENT[part].astype(float) for part in ("encoder", "decoder")}
    for _ in range(2):
        slope = ByHand(**weights)
        slope.outputs(inputs["retain"]["corrupted"], inputs["retain"]["images"], 1)
        weights = {part: x - 0.01 * np.sign(slope.gradient[part]) for part, x in weights.items()}
    hand, attacked = ByHand(), ByHand(**weights)
    retain = hand.outputs(inputs["retain"]["corrupted"], inputs["retain"]["images"], 1)
    forget = attacked.outputs(inputs["forget"]["corrupted"], inputs["forget"]["images"], ALPHA)
    hand.loss += attacked.loss
    hand.gradient = {part: x + attacked.gradient[part] for part, x in hand.gradient.items()}
    return hand, retain, forget


def epsilon(inputs):
    """Feng et al. 2024: ∇retain + η ∇forget."""
    objective, constraint = ByHand(), ByHand()
    retain = objective.features(inputs["retain"], inputs["retain"] @ W0, 1)
    forget = constraint.features(inputs["forget"], inputs["noise"] @ W0, 1)
    o, c = objective.gradient["encoder"], constraint.gradient["encoder"]
    bound = BOUNDS[1] - ALPHA * (BOUNDS[1] - BOUNDS[0])
    objective.gradient["encoder"] = constrained(o, c, (forget - bound) * np.vdot(c, c))
    return objective, retain, forget


def constrained(objective, constraint, psi):
    eta = (psi - np.vdot(constraint, objective)) / (np.vdot(constraint, constraint) + 1e-7)
    return objective + max(eta, 0) * constraint


METHODS_BY_HAND = (encoder, retain_label, random_encoder, epsilon, whole, undo, relearn_aware)
BY_HAND = {method.__name__: method for method in METHODS_BY_HAND}
BY_HAND |= {"noisy_label": generative, "ntk": generative}
BY_HAND["max_loss"] = lambda inputs: generative(inputs, -ALPHA)


@pytest.mark.parametrize("name", list(METHODS))
def test_loss_terms_and_gradients(name):
    check(OBJECTIVES[name], BY_HAND[name])


def check(objective, by_hand):
    """Compare metrics and gradient of a step with NumPy; return the loss inputs."""
    inputs = prepared(objective, TEACHER, BATCH)
    metrics, gradient = step(objective, STUDENT, TEACHER, inputs, ALPHA)
    hand, retain, forget = by_hand(wide(inputs))
    np.testing.assert_allclose([metrics["retain"], metrics["forget"]], [retain, forget], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], hand.loss, rtol=1e-5)
    for part, actual in gradient.items():
        expected = hand.gradient[part]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    untrained = set(hand.gradient) - set(gradient)
    assert all(not hand.gradient[part].any() for part in untrained)
    return inputs


def test_method_from_outside_the_package():
    runpy.run_path(str(PLUGINS))
    options = METHODS["gray"](level=0.25)
    config = UnlearningConfig(10, 4, 1e-3, method="gray", methods={"gray": options})
    assert config.options == options
    inputs = check(config.objective(LINEAR), generative)
    assert np.all(inputs["forget"]["images"] == 0.25)
    with pytest.raises(UserError, match="There is no method 'max-loss'. Did you mean 'max_loss'"):
        METHODS["max-loss"]


def test_random_inputs_of_methods():
    """T hides half of the pixels of each set, sampled separately; every target is that of the method."""
    for name in ("max_loss", "noisy_label", "undo", "relearn_aware"):
        method = Undo(forget_every=1) if name == "undo" else METHODS[name]()
        inputs = prepared(method.objective(LINEAR), TEACHER, BATCH)
        np.testing.assert_array_equal(inputs["retain"]["images"], BATCH["retain"])
        hidden = [inputs[split]["corrupted"] == 0 for split in ("retain", "forget")]
        for split, images in BATCH.items():
            corrupted, pixels = inputs[split]["corrupted"], images.reshape(-1, 12)
            assert np.all((corrupted == 2 * pixels) | (corrupted == 0))
            assert 0.45 < np.mean(corrupted == 0) < 0.55
        assert np.any(hidden[0] != hidden[1])
        truth = inputs["forget"]["images"]
        if name == "max_loss":
            np.testing.assert_array_equal(truth, BATCH["forget"])
            continue
        pixels = np.stack(list(BATCH.values()))
        normal = pixels.mean() + pixels.std() * np.random.default_rng(1).standard_normal(10**6)
        shares = [0.2, 0.4, 0.5, 0.6, 0.8]
        expected = np.quantile(np.clip(normal, 0, 1), shares)
        np.testing.assert_allclose(np.quantile(truth, shares), expected, atol=0.03)
        assert abs(np.corrcoef(truth.ravel(), BATCH["forget"].ravel())[0, 1]) < 5 / np.sqrt(truth.size)


def test_noise_features_have_the_statistics_of_both_sets_together():
    inputs = prepared(OBJECTIVES["random_encoder"], TEACHER, BATCH)
    both = np.stack([np.asarray(inputs[split], float) @ W0 for split in ("retain", "forget")])
    for name, columns in (("five", slice(5)), ("three", slice(5, 8))):  # statistics are per array
        noise, features = inputs["noise"][name], both[..., columns]
        assert abs(noise.mean() - features.mean()) < 5 * features.std() / np.sqrt(noise.size)
        assert abs(noise.std() / features.std() - 1) < 5 / np.sqrt(2 * noise.size)


def test_undo_uses_every_kth_forget_image_and_minimal_teacher():
    few, every = (prepared(Undo(forget_every=k).objective(LINEAR), TEACHER, BATCH) for k in (4, 1))
    for name in ("images", "corrupted"):
        np.testing.assert_array_equal(few["forget"][name], every["forget"][name][::4])
        np.testing.assert_array_equal(few["retain"][name], every["retain"][name])
    assert Undo(distill=0.0, feature_weight=0.0).objective(LINEAR).frozen == LINEAR.corruption_parts


def test_undo_starts_between_original_and_random_weights():
    def started(decoder, encoder, key=3):
        start = Undo(perturb=decoder, perturb_encoder=encoder).objective(LINEAR).start
        return start(TEACHER, jax.random.key(key))

    fresh, mixed, kept, other = started(1, 1), started(0.25, 0.5), started(1, 0), started(1, 1, key=4)
    for part, share in (("decoder", 0.25), ("encoder", 0.5)):
        np.testing.assert_allclose(mixed[part], (1 - share) * TEACHER[part] + share * fresh[part], atol=1e-6)
        assert np.abs(fresh[part] - TEACHER[part]).max() > 0.1 and np.any(fresh[part] != other[part])
    np.testing.assert_array_equal(kept["encoder"], TEACHER["encoder"])
    np.testing.assert_array_equal(kept["decoder"], fresh["decoder"])
    assert fresh["gain"] is TEACHER["gain"]
    assert Undo(perturb=0.0, perturb_encoder=0.0).objective(LINEAR).start is None


NORMAL = [("noisy_label", "pmap"), ("random_encoder", "jit"), ("random_encoder", "pmap")]
NORMAL += [("relearn_aware", "pmap"), ("epsilon", "jit")]
"""Methods that combine rows of a batch; these run on several devices in every run."""


@pytest.mark.parametrize(("name", "kind"), cells(METHODS, ("jit", "pmap"), normal=NORMAL))
def test_devices_and_accumulation_match_one_step(name, kind):
    """One step of gradient descent: metrics and new parameters, with statistics of the global batch."""
    objective, optimizer = OBJECTIVES[name], optax.sgd(0.1)
    batch = {split: images[:32] for split, images in BATCH.items()}

    def run(devices, accumulate, kind):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        parallel = make_parallel(mesh, kind)
        student = sharding.place({part: STUDENT[part] for part in objective.trained}, mesh)
        frozen = sharding.place({part: TEACHER[part] for part in objective.frozen}, mesh)
        state = create_state(student, optimizer, ema=False, alpha=ALPHA)
        config = TrainingConfig(steps=2, batch_size=32, learning_rate=0.1, accumulate=accumulate)
        train_step = make_step(objective, optimizer, config, parallel, seed=3)
        state, metrics = parallel.compile(train_step, state)(state, frozen, parallel.rows(batch))
        return jax.device_get((state.params, metrics))

    params, metrics = run(1, 1, "jit")
    assert all(np.abs(params[part] - STUDENT[part]).max() > 1e-3 for part in objective.trained)
    other = run(4, 1 if name == "relearn_aware" else 2, kind)  # an attacker's step is per accumulated part
    for part in objective.trained:
        np.testing.assert_allclose(other[0][part], params[part], atol=1e-5)
    for term in metrics:
        np.testing.assert_allclose(other[1][term], metrics[term], rtol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_batches_of_different_shapes_are_rejected(name):
    with pytest.raises(ValueError, match="the same shape"):
        prepared(OBJECTIVES[name], TEACHER, {**BATCH, "forget": BATCH["forget"][:4]})


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("term", ["forget", "retain"])
def test_constrained_term_without_bounds_decreases_as_if_alone(term, opposed):
    rng = np.random.default_rng(0)
    gradients = {split: rng.normal(size=12).astype(np.float32) for split in ("retain", "forget")}
    if opposed:
        gradients["retain"] -= 2 * gradients["forget"]
    rule = Constrained(term)
    result = rule.combine({}, gradients, np.float32(0))
    c = gradients[term].astype(float)
    np.testing.assert_allclose(result, constrained(gradients[rule.objective], c, c @ c), rtol=1e-5, atol=1e-5)
    assert result @ c >= (c @ c) * (1 - 1e-5)


@pytest.mark.parametrize("alpha, bound", [(0.0, 0.5), (0.25, 0.4), (1.0, 0.1), (7.0, 0.1)])
@pytest.mark.parametrize("term", [0.05, 0.45, 3.0])
def test_constrained_term_with_bounds_decreases_above_epsilon(term, alpha, bound):
    c, o = np.float32([1, -2, 3]), np.float32([2, 1, -0.5])
    terms = {"forget": np.float32(term), "retain": np.float32(9)}
    result = Constrained("forget", (0.1, 0.5)).combine(terms, {"forget": c, "retain": o}, np.float32(alpha))
    np.testing.assert_allclose(result, constrained(o, c, (term - bound) * (c @ c)), rtol=1e-4, atol=1e-5)


def test_zero_gradient_does_not_divide_by_zero():
    gradients = {"retain": np.zeros(3, np.float32), "forget": np.float32([1, 2, 3])}
    np.testing.assert_array_equal(Constrained("retain").combine({}, gradients, 0.0), gradients["forget"])
