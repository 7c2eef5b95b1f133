"""Training phases of a config: images, compiled step and training run."""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.reading import warn_of_shrinking
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.experiment.prototypes import make_prototypes
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import Parallel, make_parallel
from l2l_jax.train.step import TrainState, abstract_state, make_step, placed_state
from l2l_jax.train.token_cache import cached_objective, open_token_cache

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingPhase:
    """A training phase of a config."""

    config: Config
    objective: Objective
    training: TrainingConfig  # number of steps, batch size and optimizer
    seed: int  # random seed of the steps
    codes: tuple[str, ...] = ()  # sets of a batch that contain codes from the token cache

    def train(
        self,
        name: str,
        sets: Mapping[str, Source],
        params: Params,
        folder: pathlib.Path,
        devices: Sequence[jax.Device] | None = None,
        **run: Any,
    ) -> Params:
        """Run or resume the phase and return all parts of the trained model.

        `name` is used in messages; checkpoints, metrics and lists of bad images are stored in `folder`;
        `devices` default to all; `run` are other fields of `TrainRun`.
        """
        config, seed = self.config, self.seed
        mesh = sharding.make_mesh(None if devices is None else list(devices), config.mesh)
        batches: Any = _batches(config, self.training, sets, folder)
        if self.codes:
            identity, bank = (config.unlearn, config.model, params, batches), folder / "bank"
            batches = open_token_cache(bank, *identity, seed=seed, mesh=mesh)
        trainer = Trainer(name, self.objective, self.training, seed=seed, mesh=mesh, parallel=config.parallel)
        counts = {name: len(source) for name, source in sets.items()}
        return trainer.train(TrainRun(params, batches, folder, counts=counts, **run))

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a global batch: uint8 pixels, or floats from a source without files."""
        size, model = self.training.batch_size, self.config.model
        pixels = np.float32 if self.config.data.source == "digits" else np.uint8
        shapes = dict.fromkeys(self.objective.sets, jax.ShapeDtypeStruct((size, *model.image_shape), pixels))
        if self.codes:
            assert model.code is not None  # ensured by the config's validation
            codes = jax.ShapeDtypeStruct((size, *model.code.shape), model.code.dtype)
            shapes |= dict.fromkeys(self.codes, codes)
        return shapes

    def step(self, parallel: Parallel) -> Any:
        """Return the step, compiled on its first call, and the shapes and shardings of its arguments."""
        training, model, mesh = self.training, self.config.model, parallel.mesh
        optimizer, params = make_optimizer(training), model.shapes()
        step = make_step(self.objective, optimizer, training, parallel, seed=0, value_range=model.value_range)
        trained = jax.eval_shape(self._trained, params)
        state = abstract_state(trained, optimizer, mesh, ema=training.ema_decay > 0)
        frozen = jax.eval_shape(self.objective.cast, {part: params[part] for part in self.objective.frozen})
        rows = jax.tree.map(lambda x: _rows(x, parallel), self.batch())
        return parallel.compile(step, state), (state, sharding.abstract(frozen, mesh), rows)

    def state(self, params: Params, mesh: Mesh) -> TrainState:
        """Return the state before the first step, on the devices."""
        optimizer, ema = make_optimizer(self.training), self.training.ema_decay > 0
        return placed_state(self._trained(params), optimizer, mesh, ema=ema)

    def _trained(self, params: Params) -> Params:
        return self.objective.initial(params, jax.random.key(0))


def _rows(x: jax.ShapeDtypeStruct, parallel: Parallel) -> jax.ShapeDtypeStruct:
    """Return the shape and sharding in which a step takes the rows of a global batch."""
    devices = parallel.mesh.size
    if parallel.kind == "pmap":
        return jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(parallel.mesh, sharding.ROWS))


def open_phase(config: Config, name: str) -> TrainingPhase:
    """Return a phase of a config: "unlearn", or "pretrain.NAME" with the name of a pretraining phase.

    Raises:
      UserError: The config has no phase of that name.
    """
    model, codes = config.model, config.unlearn.banked
    if name == "unlearn":
        objective = cached_objective(config.unlearn.objective(model), model, codes)
        return TrainingPhase(config, objective, config.unlearn, phase_seed(config.seed, 1000), codes)
    stages = {f"pretrain.{stage.name}": stage for stage in model.pretraining_stages()}
    if name not in stages:
        raise UserError(f"--stage={name}: the phases of this config are unlearn, {', '.join(stages)}.")
    objective = pretraining_objective(stages[name], tuple(model.shapes()))
    seed = phase_seed(config.seed, list(stages).index(name))
    return TrainingPhase(config, objective, config.pretrain[stages[name].name], seed)


def phase_seed(seed: int, index: int) -> int:
    """Return the seed of a phase, which differs between the phases of a run and between consecutive seeds."""
    return (seed * 2003 + index) % 2**31


def training_sets(config: Config, source: Source) -> splits.Split:
    """Select the training images to retain, or their proxies, and to forget, and log them by class."""
    if config.data.prototypes:
        make_prototypes(config, source)
    sets = splits.training_sets(config.data, source, config.model.image_size)
    kind = "proxies" if config.data.proxy else "training images"
    if config.data.retain_images == "generated":
        kind = "proxies" if config.data.proxy else "noise images"
        kind = f"{'mixed prototypes' if config.data.prototypes else kind} to generate from"
    logger.info("To forget: %s", splits.describe(sets.forget, "training images"))
    logger.info("To retain: %s", splits.describe(sets.retain, kind))
    warn_of_shrinking(sets.forget, config.model.image_size)
    return sets


def _batches(
    config: Config, training: TrainingConfig, sets: Mapping[str, Source], folder: pathlib.Path
) -> TrainingBatches:
    """Return the batches of a phase; its bad images are listed in `folder`."""
    data, size, processes = config.data, config.model.image_size, jax.process_count()
    if training.batch_size % processes:
        raise UserError(
            f"batch_size is {training.batch_size}, which is not a multiple of the {processes} processes: "
            "choose a multiple of the number of devices.",
            known_to_all=True,
        )
    retain: TransformConfig = data.proxy_transform if data.proxy else data
    if data.retain_images == "generated":
        retain = TransformConfig(flip=data.flip)  # generated images are squares of the right size
    transforms = {name: Transform(retain if name == "retain" else data, size, training=True) for name in sets}
    options = LoaderOptions(folder, data.max_bad_fraction, data.workers, jax.process_index(), processes)
    fields: Any = dict(value_range=config.model.value_range, seed=config.seed, transforms=transforms)
    return TrainingBatches(sets, training.batch_size, **fields, options=options)


def parse_layout(name: str, devices: Sequence[jax.Device]) -> Parallel:
    """Parse a layout of all given devices: "pmap", or a mesh such as "4x2".

    Raises:
      UserError: The name is malformed, or the mesh does not match the number of devices.
    """
    match = re.fullmatch(r"(\d+)x(\d+)|pmap", name)
    if match is None:
        raise UserError(f"--layouts: {name!r} is neither pmap nor a mesh such as {len(devices)}x1.")
    sizes = (len(devices), 1) if name == "pmap" else tuple(map(int, match.groups()))
    mesh = sharding.make_mesh(list(devices), sharding.MeshConfig(*sizes))
    return make_parallel(mesh, "pmap" if name == "pmap" else "jit")
