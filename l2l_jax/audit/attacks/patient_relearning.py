"""Patient relearning: long fine-tuning that preserves the model, at several learning rates."""

import dataclasses
from typing import ClassVar

from l2l_jax.audit.attacks.base import Count, Measured, Rate, Work, register
from l2l_jax.audit.attacks.training import TrainingAttack, few_of_each_class, halvings
from l2l_jax.data.records import Mixture

TUNING = "patient_retain_tuning"
"""Name of the variant without any forget images."""


@register("patient_relearning")
@dataclasses.dataclass(frozen=True)
class PatientRelearning(TrainingAttack):
    """Long fine-tuning of the whole model, on a few forget images among retain images or on retain images.

    Retain images prevent overfitting. Every run is repeated at several learning rates, and the attacker keeps
    the rate and the step that are best on validation images.

    Attributes:
      shots: Number of forget images.
      tuning_steps: Number of steps of the variant on retain images only.
      rate_factors: Factors by which `learning_rate` is multiplied, one run each.
    """

    source = "longer forms of relearning (arXiv 2406.13356) and of fine-tuning (arXiv 2505.22310)"
    cost = "`steps` and `tuning_steps` training steps for each of `rate_factors`"
    measurements: ClassVar[int] = 3

    steps: Count = 300
    shots: Count = 25
    tuning_steps: Count = 1500
    rate_factors: tuple[Rate, ...] = (0.3, 1.0, 3.0)

    def variants(self, bench):
        return {
            "patient_relearning": f"{self.shots} forget images among retain images, {self.steps} steps",
            TUNING: f"retain images only, {self.tuning_steps} steps",
        }

    def check(self, bench):
        self._few(bench, 0)

    def work(self, bench):
        lengths = self.steps, self.tuning_steps
        measured = sum(len(halvings(steps, self.measurements)) for steps in lengths)
        images = bench.count("validation", "forget")
        rates = len(self.rate_factors)
        return Work(rates * measured * images, rates * sum(lengths) * self.batch_size)

    def training_images(self, variant, bench, seed):
        retain = bench.training.retain
        if variant == TUNING:
            return retain
        return Mixture({"retain": retain, "forget": self._few(bench, bench.seed(seed))}, [1.0, 1.0])

    def run(self, variant, bench, target, seed):
        training = self.training(bench.model, self.training_images(variant, bench, seed))
        training = training._replace(steps=self.tuning_steps if variant == TUNING else self.steps)
        measured_at = halvings(training.steps, self.measurements)
        points: dict[str, Measured] = {}
        for factor in self.rate_factors:
            rate = factor * self.learning_rate
            at_rate = training._replace(learning_rate=rate)
            steps = bench.train(target, f"{variant}_{rate:.2g}", at_rate, measured_at, seed)
            points |= {f"{rate:.2g} × {step}": measured for step, measured in steps.items()}
        return points

    def _few(self, bench, seed):
        return few_of_each_class(bench.training.forget, self.shots, seed, "patient_relearning.shots")
