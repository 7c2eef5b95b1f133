"""Membership inference: is an image known to have been trained on?"""

import dataclasses

import numpy as np

from l2l_jax.audit.attacks.base import Attack, Count, Work, register
from l2l_jax.data.records import evenly_spaced

FALSE_POSITIVES = {"1": 0.01, "0.1": 0.001}
"""False positive rates at which true positive rates are quoted, by per cent (Carlini et al. 2022, "Membership
inference attacks from first principles")."""


@register("membership")
@dataclasses.dataclass(frozen=True)
class Membership(Attack):
    """Tell forget training images from test images of the same classes by their masked MSE.

    A model that never saw either cannot tell them apart.

    Attributes:
      members: Number of training images, at most; evenly spaced.
    """

    title = "membership inference"
    source = "Yeom et al. 2018; relative to the retrained model, Zarifzadeh et al. 2024, arXiv 2312.03262"
    cost = "a reconstruction of each of the training images"

    members: Count = 2000

    def work(self, bench):
        return Work(min(self.members, len(bench.training.forget)) + bench.count("forget"))

    def run(self, variant, bench, target, seed):
        chosen = evenly_spaced(bench.training.forget, self.members)
        members = bench.shared("members", lambda: bench.image_set(chosen))
        title = f"{target.name}, membership"
        sets = {"members": members, "others": bench.sets["forget"]}
        return {"0": {n: bench.measure_images(target.params, s, n, title) for n, s in sets.items()}}


def relative_error(errors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return errors relative to those of a model that never saw the images, e / (e + e_reference), in [0, 1].

    The ratio cancels how hard an image is, as RMIA's likelihood ratio does, and is bounded.
    """
    return errors / np.maximum(errors + reference, 1e-12)


def true_positives(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """Return the share of members with a score below all but a share `rate` of the others' scores."""
    threshold = np.sort(others)[int(rate * len(others))]
    return float(np.mean(members < threshold))
