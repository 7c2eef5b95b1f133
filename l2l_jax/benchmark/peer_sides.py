"""Our side of `l2l_jax.benchmark.peer`, and the batch on which both compare their losses."""

from typing import Any

import flax
import jax
import numpy as np

from l2l_jax.benchmark.layouts import open_stage
from l2l_jax.benchmark.step import Run
from l2l_jax.config import parse_config
from l2l_jax.models.mae import MAE
from l2l_jax.objectives.encoder import UnlearningInputs, encoder_unlearning_loss
from l2l_jax.training import sharding
from l2l_jax.training.parallel import make_parallel


def fixed_batch(model: MAE, rows: int) -> dict[str, np.ndarray]:
    """Images of the sets "retain", "forget" and "noise" in [0, 1], and for each row of retain and of forget
    images the numbers whose order decides on the mask, "retain_mask" and "forget_mask" `[row, patch]`."""
    rng = np.random.default_rng(0)
    shape = (rows, *model.image_shape)
    images = {name: rng.random(shape, np.float32) for name in ("retain", "forget", "noise")}
    masks = {f"{name}_mask": rng.random((rows, model.grid**2), np.float32) for name in ("retain", "forget")}
    return images | masks


def kept_patches(model: MAE) -> int:
    """How many patches the encoder sees."""
    return int(model.grid**2 * (1 - model.mask_ratio))


class Ours:
    """The step of a recipe on one device.

    Args:
      recipe: nested mapping, as for `parse_config`.
    """

    def __init__(self, recipe: dict[str, Any]):
        self._config = parse_config(recipe)
        stage = open_stage(self._config, "unlearn")
        self._run = Run(stage, make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit"))

    def _params(self) -> Any:
        return jax.jit(self._config.model.init)(jax.random.key(0))["encoder"]

    def weights(self) -> dict[str, np.ndarray]:
        """The encoder's parameters, by their path."""
        return flax.traverse_util.flatten_dict(jax.device_get(self._params()), sep="/")

    def loss(self) -> float:
        """The loss of `fixed_batch`, with one set of weights for student and teacher."""
        model, how = self._config.model, self._config.unlearn
        batch, kept = fixed_batch(model, how.batch_size), kept_patches(model)

        def loss(params):
            seen = UnlearningInputs(
                retain=model.mask(batch["retain"], batch["retain_mask"], kept),
                forget=model.mask(batch["forget"], batch["forget_mask"], kept),
                noise=model.mask(batch["noise"], batch["forget_mask"], kept),
            )
            return encoder_unlearning_loss(model.encode, params, params, seen, alpha=how.alpha)[0]

        return float(jax.jit(loss)(self._params()))

    def step(self) -> float:
        """Seconds of one step."""
        return self._run.time_step()

    def images(self) -> int:
        """Images of a step."""
        return 2 * self._config.unlearn.batch_size

    def versions(self) -> str:
        """What computed."""
        return f"l2l_jax, JAX {jax.__version__}"
