"""Shared parts of this package's config files: `combine(variant, base, changes, NAME_OF_A_VARIANT=[…])`."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from l2l_jax.errors import UserError

Sections = Mapping[str, Any]

SMALL = dict(
    data=dict(validation_fraction=0.15),
    unlearn=dict(method="undo"),
    evaluate=dict(batch_size=256),
    audit=dict(enabled=True, retrained="shipped", fresh_decoder=dict(steps=300)),
)
"""Unlearning of a small model included in this package by `undo` within a retain budget, and an audit."""

DIGITS = dict(
    data=dict(source="digits", forget=tuple("56789"), retain=tuple("01234")),
    unlearn=dict(budget_images=200, undo=dict(perturb=1.0, perturb_encoder=0.0, feature_weight=0.0)),
)
TRAINING_ATTACKS = "retain_tuning", "relearning", "fresh_decoder"

FASHION = dict(
    data=dict(source="fashion", forget=("sandal", "shirt", "sneaker", "bag", "boot"), retain="rest"),
    audit={attack: dict(batch_size=32) for attack in TRAINING_ATTACKS},
)

PAPER = dict(
    unlearn=dict(
        method="encoder",
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=0.0,
        beta2=0.99,
        ema_decay=0.99,
        budget_every=20,
    )
)
"""Changes to `SMALL` for the paper's method."""

IMAGENET = dict(
    data=dict(
        source="imagenet2012",
        forget=("imagenet_i2i",),
        retain=("imagenet_i2i",),
        train_per_class=120,
        test_per_class=50,
        general=("rest",),
        general_images=5000,
        validation_fraction=0.02,
        crop="random",
        proxy_crop_scale=(0.2, 0.5),
        flip=True,
        workers=8,
    ),
    # 6 epochs, of which 5 are warm-up; 1e-4 × batch / 256
    unlearn=dict(steps=563, learning_rate=5e-5, batch_size=128, warmup_steps=469, checkpoint_every=100),
    evaluate=dict(batch_size=64, picture_per_class=1, features="none", networks=("inception", "clip")),
    audit={attack: dict(batch_size=128, learning_rate=5e-5) for attack in TRAINING_ATTACKS},
)
"""The paper's experiment on ImageNet-1K."""

# The method of the small configs, for published models: a tenth of the steps of pretraining at twice its
# learning rate. (The small configs have 0.1 to 0.4 of the steps and 1.8 to 2.5 times the rate.)
PUBLISHED_UNDO = dict(unlearn=dict(method="undo", retain_budget=1.25, checkpoint_every=500))

LOCAL = dict(
    model=dict(pretrained="", dtype="float32"),
    data=dict(
        source="folder",
        path="data/local",
        forget=("flower", "digit_1"),
        retain=("temple", "digit_0"),
        train_per_class=0,
        test_per_class=0,
        general=(),
        general_images=0,
        workers=1,
    ),
    unlearn=dict(
        steps=40, batch_size=16, learning_rate=1e-3, warmup_steps=5, checkpoint_every=20, log_every=5
    ),
    evaluate=dict(batch_size=32, picture_per_class=3, features="classifier", networks=()),
)
"""Small images from `l2l_jax.data.make_local` instead of a published data set."""

LOCAL_PRETRAINING = dict(batch_size=16, learning_rate=2e-3, warmup_steps=5, checkpoint_every=20, log_every=5)


def combine(variant: str, *bases: Sections, **variants: Sequence[Sections]) -> ConfigDict:
    """Merge sections into a config; fields of later sections override those of earlier ones.

    Args:
      variant: Name of a variant, or "".
      *bases: Sections of all variants.
      **variants: Sections that each variant adds.

    Raises:
      UserError: The variant does not exist.
    """
    if variant and variant not in variants:
        available = f"variant{'s' if len(variants) > 1 else ''} {', '.join(variants)}"
        raise UserError(f"This config has the {available}, but none called {variant!r}.")
    config: dict[str, Any] = {}
    for sections in (*bases, *variants.get(variant, ())):
        _update(config, sections)
    return ConfigDict(config)


def _update(config: dict[str, Any], changes: Sections) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            _update(config.setdefault(name, {}), value)
        else:
            config[name] = value
