"""The paper's method, and the methods that it is compared with (Li et al. 2024, section 4), on any model.

The loss of a step is `retain term + alpha · forget term`; `max_loss` subtracts. A batch holds as many
retain as forget images; a term is the mean over its own images. The releases divide by the size of the
whole batch, some with a factor 2: their losses are ours or half of ours, retain and forget terms alike.

The metrics "retain" and "forget" are the terms before alpha. The weight of a method does not carry
over to another: losses, outputs and features have scales of their own.
"""

from typing import Any

import jax

from l2l_jax.losses import (
    NoiseKind,
    batch_noise,
    corruption_keys,
    feature_distance,
    noise_features,
    noise_images,
)
from l2l_jax.methods.base import Task, unlearning_task
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.batch_axis import deinterleave, interleave


def encoder_task(model: Model, *, noise: NoiseKind = "normal") -> Task:
    """The paper's method: `encoder_unlearning_loss` on a model's encoder.

    Args:
      model: the model; the frozen "encoder" is the teacher.
      noise: kind of the noise images.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        return teacher_views(model, frozen, batch, rng, noise, axis_name)

    def losses(trained, frozen, rows):
        teacher = jax.lax.stop_gradient(model.encode(frozen["encoder"], rows["teacher"]))
        return feature_distance(model.encode(trained["encoder"], rows["student"]), teacher)

    return unlearning_task(model, ("encoder",), prepare, losses, teacher=("encoder",))


def max_loss_task(model: Model) -> Task:
    """Raise the loss on forget images: L(x_r) − alpha · L(x_f), L the model's own training loss.

    Trains encoder and decoder. The loss is not bounded below: with a large alpha or a long run it
    diverges, which clipping of the gradient delays.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        return images_and_views(model, frozen, batch, rng, axis_name)

    return generative_task(model, prepare)._replace(forget_sign=-1.0)


def noisy_label_task(model: Model) -> Task:
    """Make noise the truth of forget images: L(x_r) + alpha · L(x_f with Gaussian noise as truth).

    Trains encoder and decoder. What noise is to a family says its `noisy_truth`: a noise image whose
    missing patches are to be found (MAE), noise codes (MAGE), pure noise inside the mask (Palette).
    Its statistics are those of retain and forget images together.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = images_and_views(model, frozen, batch, rng, axis_name)
        return {**views, "forget": noise_as_truth(model, views, rng, axis_name)}

    return generative_task(model, prepare)


def retain_label_task(model: Model) -> Task:
    """Make retain images the truth of forget images, by the outputs of the original model.

    The retain term is ‖h(T(x_r)) − h_0(T(x_r))‖², the forget term ‖h(T(x_f)) − h_0(T(x_r))‖²: means
    over all of what `predict` returns, h_0 being the original model. Trains encoder and decoder.

    Forget image i is paired with retain image i of the batch. The releases pair the row that a forget
    image has in a mixed batch with the retain image of that number, counted in a circle: the same
    for a batch with the retain images first. In the MAGE release both terms are weighted by the mask
    of the retain images, so that forget images never count, and outputs include the logits of the
    class token and of unused words; neither is copied.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = images_and_views(model, frozen, batch, rng, axis_name)
        retain, forget = views["retain"]["seen"], views["forget"]["seen"]
        # The targets are made here: the retain images' serve both sets.
        target = jax.lax.stop_gradient(model.predict(frozen, retain))
        return {
            "retain": {"seen": retain, "target": target},
            "forget": {"seen": forget, "target": target},
        }

    def losses(trained, frozen, rows):
        return feature_distance(model.predict({**frozen, **trained}, rows["seen"]), rows["target"])

    return unlearning_task(model, model.generative_parts, prepare, losses, teacher=model.generative_parts)


def random_encoder_task(model: Model) -> Task:
    """Send the features of forget images to Gaussian noise.

    ‖E(T(x_r)) − E_0(T(x_r))‖² + alpha · ‖E(T(x_f)) − n‖², E_0 the original encoder, n of
    `noise_features`. Trains the encoder.

    The statistics of n are those of E_0 on retain and forget images, as in the MAGE release; in the
    Palette release E_0 sees noise inside the mask of forget images. In the MAGE release both terms are
    weighted by the mask of the retain images, so that forget images never count; not copied.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = images_and_views(model, frozen, batch, rng, axis_name)
        seen = {name: view["seen"] for name, view in views.items()}
        # The targets are made here, not in the loss: their statistics are the whole batch's.
        features = model.encode(frozen["encoder"], interleave(seen["retain"], seen["forget"]))
        retain, _ = deinterleave(features)
        _, noise = deinterleave(noise_features(features, jax.random.fold_in(rng, 2), axis_name))
        return {
            "retain": {"seen": seen["retain"], "target": retain},
            "forget": {"seen": seen["forget"], "target": noise},
        }

    def losses(trained, frozen, rows):
        return feature_distance(model.encode(trained["encoder"], rows["seen"]), rows["target"])

    return unlearning_task(model, ("encoder",), prepare, losses, teacher=("encoder",))


def teacher_views(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, noise: NoiseKind,
    axis_name: str | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """`{set: {"student", "teacher"}}`: what each sees, with one draw of T for both."""
    retain_key, forget_key = corruption_keys(rng)
    seen = model.corrupt(frozen, batch["retain"], retain_key, axis_name)
    return {
        "retain": {"student": seen, "teacher": seen},
        "forget": {
            "student": model.corrupt(frozen, batch["forget"], forget_key, axis_name),
            "teacher": noise_view(model, frozen, batch, rng, noise, axis_name),
        },
    }


def noise_view(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, noise: NoiseKind,
    axis_name: str | None,
) -> Any:  # fmt: skip
    """What the teacher sees in place of forget images, with their draw of T.

    Noise images of that kind, or those of the batch, if it brings "noise" of its own.
    """
    retain, forget = batch["retain"], batch["forget"]
    if "noise" in batch:
        drawn = batch["noise"]
    else:
        drawn = batch_noise(
            retain, forget, rng, kind=noise, value_range=model.value_range, axis_name=axis_name
        )
    return model.corrupt_noise(frozen, forget, drawn, corruption_keys(rng)[1], axis_name)


def images_and_views(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, axis_name: str | None
) -> dict[str, dict[str, Any]]:
    """`{set: {"images", "seen"}}`, drawn as for the paper's method.

    Raises:
      ValueError: shapes differ.
    """
    shapes = {name: batch[name].shape for name in ("retain", "forget")}
    if shapes["retain"] != shapes["forget"]:
        raise ValueError(
            f"retain and forget batches must have one shape, not {shapes['retain']} and {shapes['forget']}"
        )
    return {
        name: {"images": batch[name], "seen": model.corrupt(frozen, batch[name], key, axis_name)}
        for name, key in zip(("retain", "forget"), corruption_keys(rng), strict=True)
    }


def noise_as_truth(model: Model, views: Any, rng: jax.Array, axis_name: str | None) -> dict[str, Any]:
    """`{"images", "seen"}` of the forget set with noise as the truth, from `images_and_views`."""
    both = interleave(views["retain"], views["forget"])
    noise_key, truth_key = jax.random.fold_in(rng, 2), jax.random.fold_in(rng, 3)
    noise = noise_images(both["images"], noise_key, value_range=model.value_range, axis_name=axis_name)
    images, seen = model.noisy_truth(both["images"], both["seen"], noise, truth_key, axis_name)
    _, forget = deinterleave({"images": images, "seen": seen})
    return forget


def generative_task(model: Model, prepare: Any) -> Task:
    """L(retain) + alpha · L(forget), encoder and decoder trained."""

    def losses(trained, frozen, rows):
        return model.generative_loss({**frozen, **trained}, rows["images"], rows["seen"])

    return unlearning_task(model, model.generative_parts, prepare, losses)
