"""The built-in attacks; importing this package registers them."""

from l2l_jax.audit.attacks import (  # noqa: F401  (each registers an attack)
    fresh_decoder,
    linear_probe,
    membership,
    patient_relearning,
    relearning,
    retain_tuning,
    views,
    weight_noise,
)
