"""The JAX side of `benchmarks.peer`, and the batch on which both sides compare their losses."""

from typing import Any

import flax
import jax
import jax.flatten_util
import numpy as np

from benchmarks.layouts import Run
from l2l_jax.config import parse_config
from l2l_jax.experiment.phase import open_phase
from l2l_jax.losses import UnlearningInputs, encoder_unlearning_loss
from l2l_jax.models.base import Model
from l2l_jax.models.palette.model import Palette
from l2l_jax.train import sharding
from l2l_jax.train.parallel import make_parallel


def fixed_batch(model: Model, rows: int) -> dict[str, dict[str, np.ndarray]]:
    """Return images of the sets "retain", "forget" and "noise", and random inputs of T for the first two.

    Returns:
      "images" by set, within the model's range; "retain" and "forget": for a MAE, "order" `[row, patch]`,
      values whose order determines the mask; for Palette, the random inputs of `Palette.corrupt_with`.
    """
    rng = np.random.default_rng(0)
    shape, (low, high) = (rows, *model.image_shape), model.value_range
    masks = np.asarray(model.derived_parts()["holes"]) if isinstance(model, Palette) else None

    def draw() -> dict[str, np.ndarray]:
        if masks is None:
            return {"order": rng.random((rows, model.grid**2), np.float32)}
        return {
            "mask": rng.choice(masks, rows),
            "gamma": rng.random(rows, np.float32),
            **{name: rng.standard_normal(shape, np.float32) for name in ("filling", "noise")},
        }

    images = {
        name: low + (high - low) * rng.random(shape, np.float32) for name in ("retain", "forget", "noise")
    }
    return {"images": images, "retain": draw(), "forget": draw()}


def fixed_inputs(model: Model, rows: int) -> UnlearningInputs:
    """Return the inputs of student and teacher for `fixed_batch`."""
    batch = fixed_batch(model, rows)
    images = batch["images"]
    if isinstance(model, Palette):
        retain, forget = (model.corrupt_with(images[name], batch[name]) for name in ("retain", "forget"))
        return UnlearningInputs(retain, forget, model.pure_noise_inside(forget))
    kept = int(model.grid**2 * (1 - model.mask_ratio))
    return UnlearningInputs(
        retain=model.mask(images["retain"], batch["retain"]["order"], kept),
        forget=model.mask(images["forget"], batch["forget"]["order"], kept),
        noise=model.mask(images["noise"], batch["forget"]["order"], kept),
    )


class Ours:
    """The step of a config on one device."""

    def __init__(self, raw: dict[str, Any]):
        self._config = parse_config(raw)
        phase = open_phase(self._config, "unlearn")
        self._run = Run(phase, make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit"))

    def _params(self) -> Any:
        """Return initial parameters, perturbed because layers initialized to zero would have no effect."""
        fresh, key = jax.jit(self._config.model.init)(jax.random.key(0))["encoder"], jax.random.key(1)
        flat, tree = jax.flatten_util.ravel_pytree(fresh)
        return tree(flat + 0.02 * jax.random.normal(key, flat.shape))

    def weights(self) -> dict[str, np.ndarray]:
        """Return the encoder's parameters by path."""
        return flax.traverse_util.flatten_dict(jax.device_get(self._params()), sep="/")

    def loss(self) -> float:
        """Return the loss of `fixed_batch`, with the same weights for student and teacher."""
        model, cfg = self._config.model, self._config.unlearn
        inputs = fixed_inputs(model, cfg.batch_size)

        def loss(params, inputs):
            return encoder_unlearning_loss(model.encode, params, params, inputs, alpha=cfg.alpha)[0]

        return float(jax.jit(loss)(self._params(), inputs))

    def step(self) -> float:
        """Run one step and return its seconds."""
        return self._run.time_step()

    def images(self) -> int:
        """Return the number of images per step."""
        return 2 * self._config.unlearn.batch_size

    def versions(self) -> str:
        """Return the versions of the packages."""
        return f"l2l_jax, JAX {jax.__version__}"
