"""Membership inference: is an image known to have been trained on?

Members are forget images of the training set, others are test images of the same classes; a model that never
saw either cannot tell them apart.
"""

from typing import NamedTuple

import numpy as np

from l2l_jax.audit.depth import auc
from l2l_jax.audit.measuring import Measured, Meter
from l2l_jax.data.records import Source, evenly_spaced
from l2l_jax.models.base import Params

MEMBERS = 2000
"""Forget images of the training set that are scored, at most; evenly spaced."""

FALSE_POSITIVES = 0.01
"""The rate of others taken for members at which the rate of members found is quoted (Carlini et al. 2022,
"Membership inference attacks from first principles")."""


def membership(meter: Meter, params: Params, forget: Source, title: str) -> Measured:
    """Hole errors of "members" and "others". Cost: one restoration of each of these images.

    The score of an image is its own restoration error (Yeom et al. 2018), a bounded quantity here; with a
    reference model see `relative_error`.

    Args:
      meter: restores and measures.
      params: the model.
      forget: the forget images that were, or were not, trained on.
      title: is shown meanwhile.
    """
    forget = evenly_spaced(forget, MEMBERS)
    sets = {"members": meter.image_set(forget, "forget training"), "others": meter.forget}
    return {of: {"mse": meter.images(params, images, of, title)["mse"]} for of, images in sets.items()}


def relative_error(errors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Errors against those of a model that never saw the images, in [0, 1]: e / (e + e_reference).

    Hard images are hard for both: the ratio takes that out, as RMIA's likelihood ratio does (Zarifzadeh et
    al. 2024, arXiv 2312.03262), and this form of it is bounded.

    Args:
      errors, reference: `[image]`, not negative.
    """
    return errors / np.maximum(errors + reference, 1e-12)


class MembershipScores(NamedTuple):
    """How well members are told from others.

    Attributes:
      auc: area under the ROC curve; 0.5 is guessing.
      true_positives: share of members found where `FALSE_POSITIVES` of the others are taken for members.
    """

    auc: float
    true_positives: float


def scores(members: np.ndarray, others: np.ndarray) -> MembershipScores:
    """Of errors `[image]`; smaller ones are taken for members'."""
    allowed = int(FALSE_POSITIVES * len(others))
    threshold = np.sort(others)[allowed]
    return MembershipScores(float(auc(members, others)), float(np.mean(members < threshold)))
