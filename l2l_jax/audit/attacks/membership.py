"""Membership inference by the masked MSE."""

import dataclasses

import numpy as np

from l2l_jax.audit.attacks.base import Attack, Count, Work, register
from l2l_jax.data.records import evenly_spaced

FALSE_POSITIVES = {"1": 0.01, "0.1": 0.001}
"""False positive rates at which true positive rates are reported, by their value in percent (Carlini et al.
2022, "Membership inference attacks from first principles")."""


@register("membership")
@dataclasses.dataclass(frozen=True)
class Membership(Attack):
    """Membership inference by masked MSE, on forget training images and test images of the same classes.

    A model that was trained on neither cannot distinguish them.

    Attributes:
      members: Maximum number of training images; evenly spaced.
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
    """Return errors relative to those of a retrained model, e / (e + e_reference), in [0, 1].

    Like RMIA's likelihood ratio, the ratio cancels the difficulty of an image; it is also bounded.
    """
    return errors / np.maximum(errors + reference, 1e-12)


def true_positives(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """Return the true positive rate at the false positive rate `rate`; smaller scores indicate members."""
    threshold = np.sort(others)[int(rate * len(others))]
    return float(np.mean(members < threshold))
