"""The built-in attacks; importing this package registers them."""

from l2l_jax.audit.attacks import (  # noqa: F401  (each registers an attack)
    denoising,
    foreign_data,
    fresh_decoder,
    linear_probe,
    membership,
    membership_repeated,
    patient_relearning,
    relearning,
    residual_knowledge,
    retain_tuning,
    sampler_search,
    views,
    weight_noise,
)
