"""Methods that change the whole model, so that what it forgot does not come back with ordinary training."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from l2l_jax.losses import NoiseKind, feature_distance
from l2l_jax.methods.base import Task, identity, unlearning_task
from l2l_jax.methods.baselines import generative_task, images_and_views, noise_view, teacher_views
from l2l_jax.methods.gradients import LookAhead
from l2l_jax.methods.targets import BLUR, TargetKind, forget_truth
from l2l_jax.models.base import Model, Params, fresh_parts


def whole_task(model: Model, *, noise: NoiseKind = "normal") -> Task:
    """The paper's objective on the outputs of encoder and decoder.

        d(T(x_r), T(x_r)) + alpha · d(T(x_f), T(n)),   d(a, b) = ‖E(a) − E_0(b)‖² + ‖h(a) − h_0(b)‖²

    The paper trains the encoder alone, so that its frozen decoder keeps what it knew; here encoder and
    decoder are trained. The original model's outputs at places that were visible are distilled, too.

    Args:
      model: the model; its frozen copy is the teacher.
      noise: kind of the noise images.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        return teacher_views(model, frozen, batch, rng, noise, axis_name)

    def losses(trained, frozen, rows):
        student = {**frozen, **trained}
        teacher = jax.lax.stop_gradient(
            (model.encode(frozen["encoder"], rows["teacher"]), model.predict(frozen, rows["teacher"]))
        )
        features = model.encode(student["encoder"], rows["student"])  # compiled once with `predict`'s
        outputs = model.predict(student, rows["student"])
        return feature_distance(features, teacher[0]) + feature_distance(outputs, teacher[1])

    return unlearning_task(model, model.generative_parts, prepare, losses, teacher=model.generative_parts)


def undo_task(
    model: Model, *, perturb: float = 1.0, perturb_encoder: float = 0.0, distill: float = 0.5,
    target: TargetKind = "noise", target_blur: float = BLUR, noise: NoiseKind = "normal",
    feature_weight: float = 0.0, forget_every: int = 1,
) -> Task:  # fmt: skip
    """Shrink and perturb the weights, then rebuild the model from retain images.

        start: (1 − p) · θ_0 + p · fresh weights, with a p of its own for the encoder
        retain: (1 − d) · L(x_r) + d · L(x_r, with h_0's predictions as the truth)
        forget: L(x_f, with `target` as the truth) + w · ‖E(T(x_f)) − E_0(T(n))‖²

    After "Distillation Robustifies Unlearning" (Lee et al. 2025), which distils an unlearned language model
    into a damaged copy of itself. Two things differ. The teacher is the original model, but it is imitated on
    retain images only, and only in the places that its own training loss counts: what it puts elsewhere
    was never trained and carries much of what is to be forgotten. And part of the retain loss is the
    truth itself. With p = 1 for both nothing of the original weights is left: what is then known of forget
    images comes from retain images. In an MAE it is the decoder that knows how to draw them: with p = 0 for
    the encoder the model is rebuilt in half of the steps, and as deep under further training. What the
    encoder reads of forget images is then left for a new decoder to find, unless the paper's forget loss on
    its features takes it away (w > 0). The encoders of MAGE and Palette draw, too: see docs/concepts.

    Args:
      model: the model; its frozen copy is the teacher.
      perturb: p in [0, 1] of the decoder.
      perturb_encoder: p in [0, 1] of the encoder.
      distill: d in [0, 1].
      target, target_blur: see `l2l_jax.methods.targets.forget_truth`.
      noise: kind of the noise images n.
      feature_weight: w.
      forget_every: one in so many forget images of a batch is used: what they are to become is soon learnt,
        and the time of a step goes to the retain images.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = images_and_views(model, frozen, batch, rng, axis_name)
        retain = views["retain"]
        if distill:
            retain = {**retain, "imitated": model.predict(frozen, retain["seen"])}
        forget = forget_truth(model, frozen, views, rng, target, axis_name, blur=target_blur)
        if feature_weight:
            noise_seen = noise_view(model, frozen, batch, rng, noise, axis_name)
            forget = {**forget, "plain": views["forget"]["seen"], "noise": noise_seen}
        forget = jax.tree.map(one_of_each_group, forget)
        if feature_weight:
            forget["noise"] = model.encode(frozen["encoder"], forget["noise"])
        return {"retain": retain, "forget": forget}

    def one_of_each_group(rows):
        # Groups of neighbours: rows that are split over devices stay where they are.
        return rows.reshape(-1, forget_every, *rows.shape[1:])[:, 0]

    def losses(trained, frozen, rows):
        student = {**frozen, **trained}
        predicted = model.predict(student, rows["seen"])  # once for both losses: one backward pass
        truth = model.prediction_loss(predicted, rows["images"], rows["seen"])
        if "noise" in rows:
            features = model.encode(student["encoder"], rows["plain"])
            return truth + feature_weight * feature_distance(features, rows["noise"])
        if "imitated" not in rows:
            return truth
        imitated = model.imitation_loss(predicted, rows["seen"], rows["imitated"])
        return (1 - distill) * truth + distill * imitated

    shares = {part: perturb_encoder if part == "encoder" else perturb for part in model.generative_parts}
    teacher = model.generative_parts if distill else ("encoder",) if feature_weight else ()
    task = unlearning_task(model, model.generative_parts, prepare, losses, teacher=teacher)
    return task._replace(start=perturbed_start(model, shares) if any(shares.values()) else None)


def perturbed_start(model: Model, shares: Mapping[str, float]) -> Callable[[Params, jax.Array], Params]:
    """`Task.start`: (1 − p) · θ_0 + p · fresh weights.

    Args:
      model: the model.
      shares: p in [0, 1] of each part; other parts keep their weights.
    """

    fresh = fresh_parts(model, [part for part, p in shares.items() if p])

    def start(params: Params, rng: jax.Array) -> Params:
        mixed = {
            part: jax.tree.map(
                lambda old, new, p=shares[part]: (1 - p) * jnp.asarray(old) + p * new, params[part], values
            )
            for part, values in fresh(jax.random.fold_in(rng, 1)).items()
        }
        return {**params, **mixed}

    return start


def relearn_aware_task(
    model: Model,
    *,
    target: TargetKind = "noise",
    target_blur: float = BLUR,
    attack_steps: int = 1,
    attack_rate: float = 1e-3,
) -> Task:
    """Forget in a way that survives an attacker's first steps.

        L(x_r; θ) + alpha · L(x_f, with `target` as the truth; θ'),   θ' = θ after steps down L(x_r)

    The attacker of `l2l_jax.methods.gradients.LookAhead` trains on retain images. Encoder and decoder are
    trained.

    Args:
      model: the model.
      target, target_blur: see `l2l_jax.methods.targets.forget_truth`.
      attack_steps: the attacker's steps; each costs half a step of training.
      attack_rate: change of every weight in one of them.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = images_and_views(model, frozen, batch, rng, axis_name)
        return {
            **views,
            "forget": forget_truth(model, frozen, views, rng, target, axis_name, blur=target_blur),
        }

    task = generative_task(model, prepare)

    def attack(trained, frozen, inputs):
        return task.losses(trained, frozen, inputs["retain"]).mean()

    # Nothing is cast beforehand: the attacker's small steps would be lost in rounding.
    look_ahead = LookAhead(attack, attack_steps, attack_rate)
    return task._replace(gradients=look_ahead, cast=identity)
