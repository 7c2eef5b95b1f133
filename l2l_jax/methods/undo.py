"""Reconstruction of a perturbed model from retain images."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import pydantic

from l2l_jax.losses import NoiseKind, feature_distance, noisy_label_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import BLUR, TargetKind, corrupt_images, corrupt_noise, forget_truth
from l2l_jax.models.base import Model, Params, fresh_parts
from l2l_jax.utils.batch_axis import deinterleave, interleave

FEATURES = 1.5
"""Default `Undo.feature_weight`, except for U-Nets, whose features exceed the loss: α would drop to 0.005."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


@register("undo")
@dataclasses.dataclass(frozen=True)
class Undo(Method):
    """Perturbation of the weights, then reconstruction of the model from retain images.

        start: (1 − p) · θ_0 + p · fresh weights, with a separate p for the encoder
        retain: (1 − d) · L(x_r) + d · L(x_r, with h_0's predictions as ground truth)
        forget: L(x_f, with `target` as ground truth) + w · ‖E(T(x_f)) − E_0(T(n))‖²

    After "Distillation Robustifies Unlearning" (Lee et al. 2025), which distills an unlearned language model
    into a perturbed copy of itself. There are two differences. First, the teacher is the original model,
    imitated only on retain images and only where its own training loss applies: its outputs elsewhere were
    never trained and contain much of the knowledge to forget. Second, part of the retain loss has the true
    targets. With p = 1 for both parts, knowledge of forget images can only come from retain images. See
    docs/concepts.

    Attributes:
      training: Optimizer, learning rate and cycles that work for all families (research/fashion.md).
      perturb: Share p of fresh weights in the initial decoder.
      perturb_encoder: Share p of fresh weights in the initial encoder.
      distill: Weight d of the original model's predictions against the true targets, on retain images.
      target: Target of forget images, see `l2l_jax.methods.inputs.forget_truth`.
      target_blur: Standard deviation of "blur" as a share of the image's side.
      noise: Kind of the noise n for `feature_weight`, see `l2l_jax.losses.noise_images`.
      feature_weight: Weight w of the paper's forget term, which removes knowledge from the encoder's features
        that a new decoder could use. None: `FEATURES` if the encoder reads only visible positions, else 0.
      forget_every: Use every k-th forget image of a batch, which leaves more computation to retain images.
    """

    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        dict(
            steps=3500,
            first_cycle=500,
            optimizer="muon",
            learning_rate=0.012,
            warmup_steps=50,
            weight_decay=0.1,
            beta2=0.99,
            alpha=0.1,
            budget_every=20,
            budget_images=500,
        )
    )
    max_weight: ClassVar[float] = 1.0

    perturb: Share = 0.8
    perturb_encoder: Share = 0.5
    distill: Share = 0.5
    target: TargetKind = "noise"
    target_blur: Annotated[float, pydantic.Field(gt=0)] = BLUR
    noise: NoiseKind = "normal"
    feature_weight: Annotated[float, pydantic.Field(ge=0)] | None = None
    forget_every: Annotated[int, pydantic.Field(ge=1)] = 4

    @property
    def batch_divisor(self) -> int:
        return self.forget_every

    def objective(self, model: Model) -> Objective:
        weight = self.feature_weight
        if weight is None:
            weight = FEATURES if model.encodes_visible else 0.0

        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            retain = views["retain"]
            if self.distill:
                retain = {**retain, "imitated": model.predict(frozen, retain["corrupted"])}
            forget = forget_truth(model, frozen, views, rng, self.target, axis_name, blur=self.target_blur)
            if weight:
                if forget["corrupted"] is not views["forget"]["corrupted"]:
                    forget["plain"] = views["forget"]["corrupted"]
                forget["noise"] = corrupt_noise(model, frozen, batch, rng, self.noise, axis_name)
            forget = jax.tree.map(every_kth, forget)
            if weight:
                forget["noise"] = model.encode(frozen["encoder"], forget["noise"])
            return {"retain": retain, "forget": forget}

        def every_kth(rows):
            # Take one row of each group of neighbors, so sharded rows do not move between devices.
            return rows.reshape(-1, self.forget_every, *rows.shape[1:])[:, 0]

        def loss(trained, frozen, inputs, alpha):
            student, retain, forget = {**frozen, **trained}, inputs["retain"], inputs["forget"]
            # A single pass of the student over all rows: the program is smaller and compiles faster.
            rows = interleave(retain["corrupted"], forget["corrupted"])
            both = deinterleave(model.encode_and_predict(student, rows), self.forget_every)
            (_, retain_predicted), (features, forget_predicted) = both
            retain_losses = model.prediction_loss(retain_predicted, retain["images"], retain["corrupted"])
            if self.distill:
                imitation = model.imitation_loss(retain_predicted, retain["corrupted"], retain["imitated"])
                retain_losses = (1 - self.distill) * retain_losses + self.distill * imitation
            forget_losses = model.prediction_loss(forget_predicted, forget["images"], forget["corrupted"])
            if weight:
                if "plain" in forget:
                    features = model.encode(student["encoder"], forget["plain"])
                forget_losses += weight * feature_distance(features, forget["noise"])
            return noisy_label_loss(retain_losses, forget_losses, alpha=alpha)

        shares = dict.fromkeys(model.generative_parts, self.perturb) | {"encoder": self.perturb_encoder}
        teacher = model.generative_parts if self.distill else ("encoder",) if weight else ()
        start = perturbed_start(model, shares) if any(shares.values()) else None
        return unlearning_objective(
            model, model.generative_parts, prepare, loss, teacher=teacher, start=start
        )


def perturbed_start(model: Model, shares: Mapping[str, float]) -> Callable[[Params, jax.Array], Params]:
    """Return `Objective.start`: (1 − p) · θ_0 + p · fresh weights, with the share p of each given part."""
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
