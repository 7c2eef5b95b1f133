"""Membership inference from several reconstructions of an image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.audit.attacks.base import Count, Work, register
from l2l_jax.audit.attacks.training import TrainingAttack
from l2l_jax.audit.attacks.views import possible_masks
from l2l_jax.data.records import Subset, evenly_spaced

FOLDS = 5
"""Number of cross-validation folds of the shadow images."""


@register("membership_repeated")
@dataclasses.dataclass(frozen=True)
class MembershipRepeated(TrainingAttack):
    """Membership inference by errors under several masks, on forget training images and test images.

    Classifiers are the mean log error, two Gaussians and a small network, and for diffusion models the norm
    of the noise predicted for a clean image. They are fitted and compared on a shadow model: the attacked
    model fine-tuned on half of the retain validation images. Forget images are not used for this.

    Attributes:
      members: Maximum number of forget training images; evenly spaced.
    """

    title = "membership inference by several masks"
    source = "arXiv 2405.20771 (ReDiffuse); 2312.08207 (Pang and Wang, NDSS 2025); 2509.25003 (SimA)"
    cost = "`steps` training steps, and a reconstruction of training and test images for each mask"
    is_curve = False

    steps: Count = 200
    members: Count = 1000

    def work(self, bench):
        members = min(self.members, len(bench.training.forget))
        images = members + bench.count("forget") + len(bench.validation.retain)
        return Work(images * len(possible_masks(bench)), self.steps * self.batch_size)

    def run(self, variant, bench, target, seed):
        halves = [
            Subset(bench.validation.retain, np.arange(first, len(bench.validation.retain), 2))
            for first in (0, 1)
        ]
        shadow = bench.fit(target, variant, self.training(bench.model, halves[0]), seed)
        sets = {
            "members": (target.params, evenly_spaced(bench.training.forget, self.members)),
            "others": (target.params, bench.sets["forget"]),
            "shadow_members": (shadow, halves[0]),
            "shadow_others": (shadow, halves[1]),
        }
        masks = list(possible_masks(bench).values())
        runner = bench.runner(variant, lambda *inputs: _features(bench.model, masks, *inputs))
        features = {}
        for name, (params, images) in sets.items():
            images = images if name == "others" else bench.image_set(images)
            features[name] = np.concatenate([rows for _, rows in runner.over(params, images, name)])
        return decide_membership(features, has_noise=not bench.model.why_no_noise)


def _features(model, masks, params, image, rng):
    """Return the log error of an image under each mask, and the log norm of the noise predicted for it."""
    image, features = image[None], []
    for mask, key in zip(masks, jax.random.split(rng, len(masks)), strict=True):
        features.append(jnp.square(model.inpaint(params, image, mask, key) - image)[0, mask].mean())
    if not model.why_no_noise:
        features.append(model.noise_norm(params, image, masks[0], rng)[0])
    return jnp.log(jnp.stack(features) + 1e-12)


def decide_membership(features, *, has_noise):
    """Return scores by classifier and set; smaller scores indicate members.

    Args:
      features: Arrays `[image, feature]` of "members", "others", "shadow_members" and "shadow_others".
      has_noise: Whether the last feature is the norm of the predicted noise.
    """
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis  # slow to import
    from sklearn.model_selection import cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((16,), solver="lbfgs", alpha=1.0, max_iter=2000, random_state=0)
    classifiers = {"gaussians": QuadraticDiscriminantAnalysis(reg_param=0.1), "network": network}
    distances = slice(None, -1) if has_noise else slice(None)
    scores = {"mean": {name: x[:, distances].mean(1) for name, x in features.items()}}
    if has_noise:
        scores["noise_norm"] = {name: x[:, -1] for name, x in features.items()}
    inputs = np.concatenate([features["shadow_members"], features["shadow_others"]])
    is_other = np.repeat([0, 1], [len(features["shadow_members"]), len(features["shadow_others"])])
    for name, classifier in classifiers.items():
        classifier = make_pipeline(StandardScaler(), classifier)
        shadow = cross_val_predict(classifier, inputs, is_other, cv=FOLDS, method="predict_log_proba")[:, 1]
        classifier.fit(inputs, is_other)
        scores[name] = {n: classifier.predict_log_proba(features[n])[:, 1] for n in ("members", "others")}
        scores[name] |= {"shadow_members": shadow[is_other == 0], "shadow_others": shadow[is_other == 1]}
    return {
        classifier: {name: {"score": np.nan_to_num(values, neginf=-1e30)} for name, values in sets.items()}
        for classifier, sets in scores.items()
    }
