"""The methods that the paper compares its own with (Li et al. 2024, section 4), on any model.

Each is `retain term + alpha · forget term`; `max_loss` subtracts. A batch holds as many retain as
forget images; a term is the mean over its own images. The releases divide by the size of the whole
batch, some with a factor 2: their losses are ours or half of ours, retain and forget terms alike.

The metrics "retain" and "forget" are the terms before alpha. The weight of a method does not carry
over to another: losses, outputs and features have scales of their own.
"""

from typing import Any

import jax

from l2l_jax.models.base import ImageToImageModel, Params
from l2l_jax.objectives.encoder import corruption_keys, deinterleave, interleave
from l2l_jax.objectives.losses import feature_distance
from l2l_jax.objectives.noise import noise_features, noise_images
from l2l_jax.objectives.task import Task


def max_loss_task(model: ImageToImageModel, *, alpha: float) -> Task:
    """Raise the loss on forget images: L(x_r) − alpha · L(x_f), L the model's own training loss.

    Trains encoder and decoder. The loss is not bounded below: with a large alpha or a long run it
    diverges, which clipping of the gradient delays.

    Args:
      model: the model.
      alpha: weight of the forget term, 0 or more.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        return _images_and_views(model, frozen, batch, rng, axis_name)

    return _generative_task(model, prepare, -alpha)


def noisy_label_task(model: ImageToImageModel, *, alpha: float) -> Task:
    """Make noise the truth of forget images: L(x_r) + alpha · L(x_f with Gaussian noise as truth).

    Trains encoder and decoder. What noise is to a family says its `noisy_truth`: a noise image whose
    missing patches are to be found (MAE), noise codes (MAGE), pure noise inside the hole (Palette).
    Its statistics are those of retain and forget images together.

    Args:
      model: the model.
      alpha: weight of the forget term, 0 or more.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = _images_and_views(model, frozen, batch, rng, axis_name)
        both = interleave(views["retain"], views["forget"])
        noise_key, truth_key = jax.random.fold_in(rng, 2), jax.random.fold_in(rng, 3)
        noise = noise_images(
            both["images"], noise_key, value_range=model.value_range, axis_name=axis_name
        )
        images, seen = model.noisy_truth(
            both["images"], both["seen"], noise, truth_key, axis_name
        )
        _, forget = deinterleave({"images": images, "seen": seen})
        return {**views, "forget": forget}

    return _generative_task(model, prepare, alpha)


def retain_label_task(model: ImageToImageModel, *, alpha: float) -> Task:
    """Make retain images the truth of forget images, by the outputs of the original model.

    The retain term is ‖h(T(x_r)) − h_0(T(x_r))‖², the forget term ‖h(T(x_f)) − h_0(T(x_r))‖²: means
    over all of what `predict` returns, h_0 being the original model. Trains encoder and decoder.

    Forget image i is paired with retain image i of the batch. The releases pair the row that a forget
    image has in a mixed batch with the retain image of that number, counted in a circle: the same
    for a batch with the retain images first. In the MAGE release both terms are weighted by the mask
    of the retain images, so that forget images never count, and outputs include the logits of the
    class token and of unused words; neither is copied.

    Args:
      model: the model.
      alpha: weight of the forget term, 0 or more.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = _images_and_views(model, frozen, batch, rng, axis_name)
        return {name: view["seen"] for name, view in views.items()}

    def loss(trained, frozen, inputs):
        target = jax.lax.stop_gradient(model.predict(frozen, inputs["retain"]))
        outputs = model.predict(
            {**frozen, **trained}, interleave(inputs["retain"], inputs["forget"])
        )
        return _weighted(feature_distance(outputs, interleave(target, target)), alpha)

    return Task(
        trained=model.generative_parts,
        frozen=(*model.generative_parts, *model.corruption_parts),
        sets=("retain", "forget"),
        prepare=prepare,
        loss=loss,
    )


def random_encoder_task(model: ImageToImageModel, *, alpha: float) -> Task:
    """Send the features of forget images to Gaussian noise.

    ‖E(T(x_r)) − E_0(T(x_r))‖² + alpha · ‖E(T(x_f)) − n‖², E_0 the original encoder, n of
    `noise_features`. Trains the encoder.

    The statistics of n are those of E_0 on retain and forget images, as in the MAGE release; in the
    Palette release E_0 sees noise inside the hole of forget images. In the MAGE release both terms are
    weighted by the mask of the retain images, so that forget images never count; not copied.

    Args:
      model: the model.
      alpha: weight of the forget term, 0 or more.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = _images_and_views(model, frozen, batch, rng, axis_name)
        seen = {name: view["seen"] for name, view in views.items()}
        # The targets are made here, not in the loss: their statistics are the whole batch's.
        features = model.encode(frozen["encoder"], interleave(seen["retain"], seen["forget"]))
        retain, _ = deinterleave(features)
        drawn = noise_features(features, jax.random.fold_in(rng, 2), axis_name)
        _, noise = deinterleave(drawn)
        return {"seen": seen, "target": {"retain": retain, "forget": noise}}

    def loss(trained, frozen, inputs):
        seen, target = inputs["seen"], inputs["target"]
        features = model.encode(trained["encoder"], interleave(seen["retain"], seen["forget"]))
        target = interleave(target["retain"], target["forget"])
        return _weighted(feature_distance(features, target), alpha)

    return Task(
        trained=("encoder",),
        frozen=("encoder", *model.corruption_parts),
        sets=("retain", "forget"),
        prepare=prepare,
        loss=loss,
    )


def _images_and_views(
    model: ImageToImageModel, frozen: Params, batch: Any, rng: jax.Array, axis_name: str | None
) -> Any:
    """`{set: {"images", "seen"}}`, drawn as for the paper's method."""
    shapes = {name: batch[name].shape for name in ("retain", "forget")}
    if shapes["retain"] != shapes["forget"]:
        raise ValueError(
            "retain and forget batches must have one shape, "
            f"not {shapes['retain']} and {shapes['forget']}"
        )
    return {
        name: {"images": batch[name], "seen": model.corrupt(frozen, batch[name], key, axis_name)}
        for name, key in zip(("retain", "forget"), corruption_keys(rng), strict=True)
    }


def _generative_task(model: ImageToImageModel, prepare: Any, weight: float) -> Task:
    """L(retain) + weight · L(forget), encoder and decoder trained."""

    def loss(trained, frozen, inputs):
        both = interleave(inputs["retain"], inputs["forget"])
        losses = model.generative_loss({**frozen, **trained}, both["images"], both["seen"])
        return _weighted(losses, weight)

    return Task(
        trained=model.generative_parts,
        frozen=model.corruption_parts,
        sets=("retain", "forget"),
        prepare=prepare,
        loss=loss,
    )


def _weighted(losses: jax.Array, weight: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Losses `[2 · batch]` of interleaved examples → weighted sum of the two means, and the means."""
    retain, forget = losses.reshape(-1, 2).mean(axis=0)
    return retain + weight * forget, {"retain": retain, "forget": forget}
