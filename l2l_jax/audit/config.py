"""Config of the attacks on an unlearned model."""

import dataclasses
import functools

import l2l_jax.audit.attacks  # noqa: F401  (registers the built-in attacks)
from l2l_jax.audit.attacks.base import ATTACKS, Attack, Count
from l2l_jax.errors import UserError
from l2l_jax.evals.config import Names

DEFAULT = ("retain_tuning", "relearning", "fresh_decoder", "linear_probe", "membership")
THOROUGH = "thorough"  # selects all attacks that the model supports

RENAMED = {
    "steps": ("retain_tuning.steps",),
    "decoder_steps": ("fresh_decoder.steps",),
    "batch_size": ("retain_tuning.batch_size", "relearning.batch_size", "fresh_decoder.batch_size"),
    "learning_rate": ("retain_tuning.learning_rate", "fresh_decoder.learning_rate"),
    "shots": ("relearning.shots",),
    "shot_steps": ("relearning.steps",),
    "shot_learning_rate": ("relearning.learning_rate",),
    "pixel_change": ("views.pixel_change",),
}
"""Options that replaced fields of version 0.1, by field."""


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Attacks on an unlearned model, and the models to compare it with.

    The options of each attack are a section of their own, such as `config.audit.relearning.shots`.

    Attributes:
      enabled: Audit after `l2l-jax run` and `l2l-jax compare`; `python -m l2l_jax.audit` always audits.
      attacks: Names of attacks; "a,b" is the same as ("a", "b"). "thorough" runs all attacks that the model
        supports, which takes several times as long.
      retrained: Models trained without the forget images: folders of saved models or names of shipped models;
        "shipped" for the retrained models that belong to the shipped model being unlearned (none if other
        classes are forgotten); "train" to train one in the workdir; empty for none.
      seeds: Number of repetitions of attacks that train, with different images, orders and initial decoders.
    """

    enabled: bool = False
    attacks: Names = DEFAULT
    retrained: Names = ()
    seeds: Count = 1

    def __post_init__(self):
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks names something twice: {self.attacks}")
        if THOROUGH in self.attacks and len(self.attacks) > 1:
            raise ValueError(f"attacks names {THOROUGH!r}, which is all of them, and others: {self.attacks}")
        try:
            _ = [ATTACKS[name] for name in self.attacks if name != THOROUGH]
        except UserError as error:
            raise ValueError(f"attacks: {error}") from None


def audit_config_class() -> type[AuditConfig]:
    """Return `AuditConfig` with a field for the options of each registered attack."""
    return _with_options(tuple((name, ATTACKS[name]) for name in ATTACKS))


@functools.cache
def _with_options(registered: tuple[tuple[str, type[Attack]], ...]) -> type[AuditConfig]:
    fields = [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in registered]
    return dataclasses.make_dataclass(
        "AuditConfig", fields, bases=(AuditConfig,), frozen=True, namespace={"__module__": __name__}
    )
