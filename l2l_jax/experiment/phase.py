"""The compiled training step of a config's phase, without data."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from l2l_jax.config import Config
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import Parallel, make_parallel
from l2l_jax.train.step import TrainState, abstract_state, make_step, placed_state
from l2l_jax.train.token_cache import CODES, cached_objective


@dataclasses.dataclass(frozen=True)
class TrainingPhase:
    """A training phase of a config, without data.

    Attributes:
      config: Config.
      objective: What is trained.
      training: Length, batch size and optimizer.
      codes: Sets of a batch that are codes from the token cache.
    """

    config: Config
    objective: Objective
    training: TrainingConfig
    codes: tuple[str, ...] = ()

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a global batch: uint8 pixels, or floats from a source without files."""
        shape = (self.training.batch_size, *self.config.model.image_shape)
        pixels = np.float32 if self.config.data.source == "digits" else np.uint8
        images = {name: jax.ShapeDtypeStruct(shape, pixels) for name in self.objective.sets}
        codes = jax.ShapeDtypeStruct((self.training.batch_size, self.config.model.tokens), CODES)
        return {**images, **dict.fromkeys(self.codes, codes)}

    def step(self, parallel: Parallel) -> Any:
        """Return the step, compiled when first called, and the shapes and shardings of its arguments."""
        training, optimizer = self.training, make_optimizer(self.training)
        value_range = self.config.model.value_range
        step = make_step(
            self.objective, optimizer, seed=0, value_range=value_range, config=training, parallel=parallel
        )
        params, mesh = self.config.model.shapes(), parallel.mesh
        trained = jax.eval_shape(self._trained, params)
        state = abstract_state(trained, optimizer, mesh, ema=training.ema_decay > 0)
        frozen = jax.eval_shape(self.objective.cast, {part: params[part] for part in self.objective.frozen})
        frozen = sharding.abstract(frozen, mesh)
        return parallel.compile(step, state), (state, frozen, self._rows(parallel))

    def _trained(self, params: Params) -> Params:
        return self.objective.initial(params, jax.random.key(0))

    def state(self, params: Params, mesh: Mesh) -> TrainState:
        """Return the state before the first step, on the devices."""
        training = self.training
        trained = self._trained(params)
        return placed_state(trained, make_optimizer(training), mesh, ema=training.ema_decay > 0)

    def _rows(self, parallel: Parallel) -> Any:
        devices = parallel.mesh.size

        def rows(x):
            if parallel.kind == "pmap":
                return jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype)
            place = NamedSharding(parallel.mesh, sharding.ROWS)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        return jax.tree.map(rows, self.batch())


def open_phase(config: Config, name: str) -> TrainingPhase:
    """Return the phase that `--stage` names.

    Raises:
      UserError: There is no such phase.
    """
    model = config.model
    stages = {f"pretrain.{one.name}": one for one in model.pretraining_stages()}
    if name == "unlearn":
        codes = config.unlearn.banked
        objective = cached_objective(config.unlearn.objective(model), model, codes)
        return TrainingPhase(config, objective, config.unlearn, codes)
    if name not in stages:
        raise UserError(f"--stage={name}: the phases of this config are unlearn, {', '.join(stages)}.")
    parts = tuple(model.shapes())
    objective = pretraining_objective(stages[name], parts)
    return TrainingPhase(config, objective, config.pretrain[stages[name].name])


def parse_layout(name: str, devices: Sequence[jax.Device]) -> Parallel:
    """Parse a layout of all given devices: "pmap", or a mesh such as "4x2".

    Raises:
      UserError: The name has another form, or the mesh another size.
    """
    match = re.fullmatch(r"(\d+)x(\d+)|pmap", name)
    if match is None:
        raise UserError(f"--layouts: {name!r} is neither pmap nor a mesh such as {len(devices)}x1.")
    sizes = (len(devices), 1) if name == "pmap" else tuple(map(int, match.groups()))
    mesh = sharding.make_mesh(list(devices), sharding.MeshConfig(*sizes))
    return make_parallel(mesh, "pmap" if name == "pmap" else "jit")
