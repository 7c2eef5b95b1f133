"""Base class and registry of attacks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import numpy as np
import pydantic
from flax.traverse_util import flatten_dict, unflatten_dict

from l2l_jax.utils.registry import Registry

if TYPE_CHECKING:
    from l2l_jax.audit.bench import Bench, Target

Count = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0)]
# By set ("retain", "forget", "validation", "members", "others"), then by name: "mse", masked MSE; "error",
# calibrated MSE; "label", class IDs; with a classifier "right", whether it is correct, and "credit"; arrays
# `[image]`. See `l2l_jax.audit.knowledge`
Measured = Mapping[str, Mapping[str, np.ndarray]]
# Measurements by the name of the measured point: a step, a layer
Points = Mapping[str, Measured]
Findings = Mapping[str, Points]  # points of one model by attack variant, averaged over seeds


def mean_points(runs: Sequence[Points]) -> Points:
    """Average every measurement over runs of one attack with different random draws."""
    if len(runs) == 1:
        return runs[0]
    arrays = [flatten_dict(run, sep="/") for run in runs]
    means = {path: np.mean([run[path] for run in arrays], axis=0) for path in arrays[0]}
    return unflatten_dict(means, sep="/")


class Work(NamedTuple):
    """Numbers of images that an attack on one model reconstructs and trains on, to estimate its run time."""

    reconstructed: float
    trained: float = 0.0


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a model; its fields are its options, `config.audit.<name>.<field>`.

    Attributes:
      title: Human-readable title, with options in braces, such as "retain images only, {steps} steps".
      source: Publication that describes the attack.
      cost: Cost for each model.
      is_curve: Whether the points are steps from the unattacked model, of which the attacker keeps the best.
      is_seeded: Whether the attack is repeated with `config.audit.seeds` seeds.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    is_curve: ClassVar[bool] = False
    is_seeded: ClassVar[bool] = False

    def variants(self, bench: "Bench") -> Mapping[str, str]:
        """Return the titles of the attack's variants by name; each variant is one row of the report."""
        return {ATTACKS.name_of(type(self)): self.title.format(**vars(self))}

    def why_not(self, bench: "Bench") -> str:
        """Return the reason why the models do not support this attack, or ""."""
        return ""

    def work(self, bench: "Bench") -> Work:
        """Return the work on one model: by default one reconstruction of each image for each variant."""
        return Work(len(self.variants(bench)) * bench.count("validation", "forget"))

    def check(self, bench: "Bench") -> None:
        """Raise a UserError if there are too few images; called before any attack runs."""

    def run(self, variant: str, bench: "Bench", target: "Target", seed: int) -> Points:
        """Attack a model and return its measurements.

        Args:
          variant: Name of one of `variants`.
          bench: Image sets, metrics and training runs; the same for all models.
          target: Model to attack.
          seed: Index of the repetition.

        Returns:
          Measurements by point. Points with "validation" measurements are candidates; the report quotes the
          best of them on the "forget" test images.
        """
        raise NotImplementedError


ATTACKS: Registry[Attack] = Registry("attack")  # all attacks by name
register = ATTACKS.register
