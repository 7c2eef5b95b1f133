"""Which attacks an audit runs, and how hard they try."""

import dataclasses
from typing import Annotated, Literal

import pydantic

AttackName = Literal["retain_tuning", "relearning", "fresh_decoder", "linear_probe", "membership", "views"]

Positive = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0)]


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """How an unlearned model is attacked; docs/audit.md says what each attack asks and costs.

    Attributes:
      enabled: whether the main program and the comparison audit; `python -m l2l_jax.audit` does in any case.
      attacks: which attacks.
      retrained: the yardstick, a model that never saw the forget images: folder of a saved model, name of
        a shipped one, "shipped" for the twin of the shipped model that is unlearned (none if other classes
        are to be forgotten), "train" to train it in the workdir, or empty: there is none, and no depth is
        known.
      steps: steps of "retain_tuning".
      decoder_steps: steps that a fresh decoder is trained.
      batch_size, learning_rate: of both; the rate is constant.
      shots: numbers of forget images of "relearning".
      shot_steps, shot_learning_rate: steps and rate of "relearning".
      seeds: how often attacks that train are repeated, with other images, orders and initial decoders.
      pixel_change: of "views": the greatest change of a visible pixel, in 255ths of the range.
    """

    enabled: bool = False
    attacks: tuple[AttackName, ...] = (
        "retain_tuning",
        "relearning",
        "fresh_decoder",
        "linear_probe",
        "membership",
    )
    retrained: str = ""
    steps: Positive = 400
    decoder_steps: Positive = 600
    batch_size: Positive = 64
    learning_rate: Rate = 2e-3
    shots: tuple[Positive, ...] = (5, 25, 100)
    shot_steps: Positive = 50
    shot_learning_rate: Rate = 1e-3
    seeds: Positive = 1
    pixel_change: Rate = 8.0

    def __post_init__(self):
        for name in ("attacks", "shots"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} names something twice: {getattr(self, name)}")
