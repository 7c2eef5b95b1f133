"""Methods that change the whole model, by hand on a linear one, and on the families."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from l2l_jax.methods import targets
from l2l_jax.methods.base import total_loss
from l2l_jax.methods.baselines import encoder_task
from l2l_jax.methods.deep import relearn_aware_task, undo_task, whole_task
from l2l_jax.methods.targets import blurred, forget_truth
from tests.matrix import cells
from tests.methods.test_baselines import ALPHA, BATCH, LINEAR, STUDENT, TEACHER, parts, prepared
from tests.train.families import MODELS, images_of, params_of

W, V = STUDENT["encoder"].astype(float), STUDENT["decoder"].astype(float)
W0, V0 = TEACHER["encoder"].astype(float), TEACHER["decoder"].astype(float)


blur = jax.jit(blurred, static_argnums=1)
loss_of = jax.jit(total_loss, static_argnums=0)


def mse(outputs, target):
    return np.square(outputs - target).mean()


def test_whole_compares_features_and_outputs():
    """Features are two arrays, 5 and 3 wide, a mean of each."""
    task = whole_task(LINEAR)
    inputs = prepared(task)
    terms = []
    for of in ("retain", "forget"):
        student, teacher = (np.asarray(inputs[of][who], float) for who in ("student", "teacher"))
        z, z0 = student @ W, teacher @ W0
        terms.append(mse(z[:, :5], z0[:, :5]) + mse(z[:, 5:], z0[:, 5:]) + mse(z @ V, z0 @ V0))
    loss, found = loss_of(task, parts(STUDENT, task.trained), parts(TEACHER, task.frozen), inputs, ALPHA)
    np.testing.assert_allclose([found["retain"], found["forget"]], terms, rtol=1e-5)
    np.testing.assert_allclose(loss, terms[0] + ALPHA * terms[1], rtol=1e-5)
    np.testing.assert_array_equal(inputs["retain"]["student"], inputs["retain"]["teacher"])


def test_undo_mixes_the_truth_and_the_originals_predictions():
    task = undo_task(LINEAR, distill=0.3)
    inputs = prepared(task)
    seen = np.asarray(inputs["retain"]["seen"], float)
    outputs, truth = seen @ W @ V, BATCH["retain"].reshape(-1, 12)
    retain = 0.7 * mse(outputs, truth) + 0.3 * mse(outputs, seen @ W0 @ V0)
    noisy = inputs["forget"]
    forget = mse(np.asarray(noisy["seen"], float) @ W @ V, np.asarray(noisy["images"], float).reshape(-1, 12))
    assert not np.array_equal(noisy["images"], BATCH["forget"])
    loss, found = loss_of(task, parts(STUDENT, task.trained), parts(TEACHER, task.frozen), inputs, ALPHA)
    np.testing.assert_allclose([found["retain"], found["forget"]], [retain, forget], rtol=1e-5)
    np.testing.assert_allclose(loss, retain + ALPHA * forget, rtol=1e-5)


def test_undo_takes_the_features_of_forget_images_to_those_of_noise():
    plain, task = undo_task(LINEAR), undo_task(LINEAR, feature_weight=0.4)
    views = prepared(encoder_task(LINEAR))["forget"]
    student, teacher = (np.asarray(views[who], float) for who in ("student", "teacher"))
    z, z0 = student @ W, teacher @ W0
    features = mse(z[:, :5], z0[:, :5]) + mse(z[:, 5:], z0[:, 5:])
    found = [
        loss_of(x, parts(STUDENT, x.trained), parts(TEACHER, x.frozen), prepared(x), ALPHA)[1]
        for x in (plain, task)
    ]
    np.testing.assert_allclose(found[1]["forget"], found[0]["forget"] + 0.4 * features, rtol=1e-5)
    np.testing.assert_allclose(found[1]["retain"], found[0]["retain"], rtol=1e-6)


def test_undo_uses_one_in_so_many_forget_images():
    every = len(BATCH["forget"]) // 2
    few, all_of_them = (prepared(undo_task(LINEAR, forget_every=k)) for k in (every, 1))
    for name in ("images", "seen"):
        np.testing.assert_array_equal(few["forget"][name], all_of_them["forget"][name][::every])
        np.testing.assert_array_equal(few["retain"][name], all_of_them["retain"][name])


def test_undo_without_the_original_needs_no_teacher_and_is_noisy_label():
    task = undo_task(LINEAR, distill=0.0)
    assert task.frozen == LINEAR.corruption_parts
    inputs = prepared(task)
    expected = []
    for of in ("retain", "forget"):
        outputs = np.asarray(inputs[of]["seen"], float) @ W @ V
        expected.append(mse(outputs, np.asarray(inputs[of]["images"], float).reshape(-1, 12)))
    _, found = loss_of(task, parts(STUDENT, task.trained), parts(TEACHER, task.frozen), inputs, ALPHA)
    np.testing.assert_allclose([found["retain"], found["forget"]], expected, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_undo_starts_between_the_original_and_fresh_weights(family):
    model, params = MODELS[family], params_of(MODELS[family])
    key = jax.random.key(3)

    @jax.jit
    def started():
        """Wholly fresh, half, and fresh but for the encoder."""
        shares = ((1.0, 1.0), (0.5, 0.5), (1.0, 0.0))
        found = [undo_task(model, perturb=p, perturb_encoder=q).start(params, key) for p, q in shares]
        for other in set(params).difference(model.generative_parts):
            assert all(made[other] is params[other] for made in found)
        return [{part: made[part] for part in model.generative_parts} for made in found]

    wholly, half, kept = jax.device_get(started())
    assert undo_task(model, perturb=0.0, perturb_encoder=0.0).start is None
    jax.tree.map(np.testing.assert_array_equal, kept["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, kept["decoder"], wholly["decoder"])
    assert set(wholly) == set(model.generative_parts)
    for part in wholly:
        for name, (new, mixed, old) in enumerate(
            zip(*(jax.tree.leaves(x[part]) for x in (wholly, half, params)), strict=True)
        ):
            expected = 0.5 * np.asarray(old) + 0.5 * np.asarray(new)
            np.testing.assert_allclose(mixed, expected, atol=1e-6, err_msg=f"{part} {name}")
    assert any(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 0.01
        for a, b in zip(jax.tree.leaves(wholly["encoder"]), jax.tree.leaves(params["encoder"]), strict=True)
    )


def test_the_attackers_step_before_the_forget_gradient():
    """By hand: θ' = θ − rate · sign(∇retain), the forget gradient there, the retain gradient at θ."""
    task = relearn_aware_task(LINEAR, attack_steps=1, attack_rate=0.01)
    inputs = prepared(task)
    rows = {
        of: (np.asarray(inputs[of]["seen"], float), np.asarray(inputs[of]["images"], float).reshape(-1, 12))
        for of in ("retain", "forget")
    }

    def gradient(w, v, of):
        x, y = rows[of]
        slope = 2 * (x @ w @ v - y) / y.size
        return {"encoder": x.T @ slope @ v.T, "decoder": (x @ w).T @ slope}

    retain = gradient(W, V, "retain")
    forget = gradient(W - 0.01 * np.sign(retain["encoder"]), V - 0.01 * np.sign(retain["decoder"]), "forget")

    @jax.jit
    def compute(alpha):
        terms, found = task.gradients.compute(
            task, parts(STUDENT, task.trained), {}, inputs, alpha, lambda x: x
        )
        return terms, task.gradients.combine(terms, found, alpha)

    terms, direction = jax.device_get(compute(np.float32(ALPHA)))
    for part in direction:
        expected = retain[part] + ALPHA * forget[part]
        np.testing.assert_allclose(direction[part], expected, atol=1e-5 * np.abs(expected).max())
    here = gradient(W, V, "forget")
    assert np.abs(forget["encoder"] - here["encoder"]).max() > 1e-3 * np.abs(here["encoder"]).max()
    np.testing.assert_allclose(terms["loss"], terms["retain"] + ALPHA * terms["forget"], rtol=1e-5)


def test_blur_against_scipy():
    """In the middle of a large image the borders play no part."""
    images = np.random.default_rng(0).random((2, 40, 40, 3), np.float32)
    expected = scipy.ndimage.gaussian_filter(images.astype(float), (0, 2, 2, 0), truncate=10)
    np.testing.assert_allclose(
        np.asarray(blur(images, 2.0))[:, 18:22, 18:22], expected[:, 18:22, 18:22], atol=1e-4
    )
    np.testing.assert_allclose(blur(np.ones((1, 8, 8, 3), np.float32), 3.0), 1, rtol=1e-5)  # light is kept


CELLS = cells(
    MODELS, ("mean", "blur"), normal=[("mae", "mean"), ("mae", "blur"), ("mage", "mean"), ("palette", "blur")]
)


@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_other_truths_than_noise(family, kind):
    """What is to be restored is the other image; what stays visible stays."""
    model, params = MODELS[family], params_of(MODELS[family])
    (batch,) = images_of(family, 1, 4)

    def prepare(params, batch, key):
        views = {of: {"images": x, "seen": model.corrupt(params, x, key)} for of, x in batch.items()}
        return views, forget_truth(model, params, views, key, kind, blur=0.25)

    views, found = jax.jit(prepare)(params, batch, jax.random.key(0))
    forget = np.asarray(batch["forget"])
    truth = (
        np.broadcast_to(batch["retain"].mean(axis=0), forget.shape)
        if kind == "mean"
        else np.asarray(blur(forget, model.image_size / 4))
    )
    seen, before = found["seen"], views["forget"]["seen"]
    if family == "mae":
        np.testing.assert_allclose(found["images"], truth, atol=1e-6)
        np.testing.assert_array_equal(seen["patches"], before["patches"])
    elif family == "mage":
        np.testing.assert_array_equal(seen["targets"], jax.jit(model.tokenize)(params, truth))
        np.testing.assert_array_equal(seen["ids"], before["ids"])
    else:
        gamma = np.asarray(before["gamma"])[:, None, None, None]
        noisy = np.sqrt(gamma) * truth + np.sqrt(1 - gamma) * np.asarray(before["noise"])
        mask = np.asarray(before["mask"])[..., None]
        np.testing.assert_allclose(seen["inputs"][..., 3:], np.where(mask, noisy, forget), atol=1e-5)
        np.testing.assert_array_equal(seen["inputs"][..., :3], before["inputs"][..., :3])


def test_the_blur_of_a_method_is_what_was_asked_for():
    """The images of `LINEAR` are no images: the blur is seen where the target is made."""
    sigmas = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "blurred", lambda images, sigma: sigmas.append(sigma) or images)
        model = MODELS["mae"]
        (batch,) = images_of("mae", 1, 4)
        for method in (undo_task, relearn_aware_task):
            task = method(model, target="blur", target_blur=0.5)
            frozen = {part: params_of(model)[part] for part in task.frozen}
            jax.eval_shape(task.prepare, frozen, batch, jax.random.key(0))
    assert sigmas == [0.5 * model.image_size] * 2


def test_an_unknown_target():
    with pytest.raises(ValueError, match="target must be noise, blur or mean, not 'grey'"):
        prepared(undo_task(LINEAR, target="grey"))
