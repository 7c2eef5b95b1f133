"""A recipe's training step on several layouts of the same devices."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from l2l_jax.config import Config
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Task, pretraining_task, total_loss
from l2l_jax.methods.registry import make_task
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, learning_rate_schedule, make_optimizer
from l2l_jax.train.parallel import Parallel, make_parallel
from l2l_jax.train.step import TrainState, abstract_state, make_step, placed_state, scaled_pixels
from l2l_jax.train.token_bank import CODES, banked_task


@dataclasses.dataclass(frozen=True)
class TrainingStage:
    """A training stage of a recipe, without data.

    Attributes:
      config: the recipe.
      task: what is trained.
      training: how.
      codes: the sets of a batch that are codes from a token bank.
    """

    config: Config
    task: Task
    training: TrainingConfig
    codes: tuple[str, ...] = ()

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch: uint8 pixels, or floats from a source whose images are not files."""
        shape = (self.training.batch_size, *self.config.model.image_shape)
        pixels = np.float32 if self.config.data.source == "digits" else np.uint8
        images = {name: jax.ShapeDtypeStruct(shape, pixels) for name in self.task.sets}
        codes = jax.ShapeDtypeStruct((self.training.batch_size, self.config.model.tokens), CODES)
        return {**images, **dict.fromkeys(self.codes, codes)}

    def step(self, parallel: Parallel) -> Any:
        """The compiled-on-call step and the shapes, with shardings, of its arguments."""
        how, optimizer = self.training, make_optimizer(self.training)
        step = make_step(
            self.task, optimizer, seed=0, value_range=self.config.model.value_range,
            learning_rate=learning_rate_schedule(how), ema_decay=how.ema_decay, accumulate=how.accumulate,
            parallel=parallel,
        )  # fmt: skip
        params, mesh = self.config.model.shapes(), parallel.mesh
        trained = jax.eval_shape(self._trained, params)
        state = abstract_state(trained, optimizer, mesh, ema=how.ema_decay > 0)
        frozen = jax.eval_shape(self.task.cast, {part: params[part] for part in self.task.frozen})
        frozen = sharding.abstract(frozen, mesh)
        return parallel.compile(step, state), (state, frozen, self._rows(parallel))

    def flops(self) -> float:
        """Floating-point operations of a step on the whole batch, as XLA counts them in the traced program.

        Loops, and with them accumulated parts but one, count once.
        """
        one = make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit")
        step, arguments = self.step(one)
        return float(step.lower(*arguments).cost_analysis()["flops"])

    def _trained(self, params: Params) -> Params:
        return self.task.initial(params, jax.random.key(0))

    def state(self, params: Params, mesh: Mesh) -> TrainState:
        """The state before the first step, on the devices."""
        how = self.training
        trained = self._trained(params)
        return placed_state(trained, make_optimizer(how), mesh, ema=how.ema_decay > 0)

    def halves(self, parallel: Parallel) -> dict[str, Callable]:
        """The first half of a step, and the first two: `(params, frozen, rows) -> arrays`."""

        def inputs(frozen, rows):
            pixels = scaled_pixels(rows, self.config.model.value_range)
            return self.task.prepare(frozen, pixels, jax.random.key(0), parallel.axis_name)

        def prepare(params, frozen, rows):
            return inputs(parallel.gather(frozen), rows)

        def gradient(params, frozen, rows):
            params, frozen = parallel.gather((self.task.cast(params), frozen))
            value_and_grad = jax.value_and_grad(functools.partial(total_loss, self.task), has_aux=True)
            return value_and_grad(params, frozen, inputs(frozen, rows))

        return {"prepare": prepare, "gradient": gradient}

    def _rows(self, parallel: Parallel) -> Any:
        devices = parallel.mesh.size

        def rows(x):
            if parallel.kind == "pmap":
                return jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype)
            place = NamedSharding(parallel.mesh, sharding.ROWS)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        return jax.tree.map(rows, self.batch())


def open_stage(config: Config, name: str) -> TrainingStage:
    """The stage of a recipe that `--stage` names.

    Raises:
      UserError: there is no such stage.
    """
    model = config.model
    stages = {f"pretrain.{one.name}": one for one in model.pretraining_stages()}
    if name == "unlearn":
        how = config.unlearn
        task = make_task(how.method, model, **how.options)
        return TrainingStage(config, banked_task(task, model, how.banked), how, how.banked)
    if name not in stages:
        raise UserError(f"--stage={name}: the stages of this recipe are unlearn, {', '.join(stages)}.")
    parts = tuple(model.shapes())
    task = pretraining_task(stages[name], parts)
    return TrainingStage(config, task, config.pretrain[stages[name].name])


def parse_layouts(names: Sequence[str], stage: TrainingStage) -> dict[str, Parallel]:
    """Layouts by name; without names one of each sort that the devices allow.

    Raises:
      UserError: a name of another form, a mesh of another size, or a batch that does not divide.
    """
    count = jax.device_count()
    default = [f"{count}x1", "pmap"]
    if count > 1:
        half = [f"{count // 2}x2"] if count % 2 == 0 and count > 2 else []
        default[1:1] = [*half, f"1x{count}"]
    how = stage.training
    chosen = {name: parse_layout(name, jax.devices()) for name in names or default}
    sharding.check_batch_size(how.batch_size, how.batch_parts, sharding.make_mesh(), "batch_size")
    return chosen


def parse_layout(name: str, devices: Sequence[jax.Device]) -> Parallel:
    """All of some devices as a layout names them: "pmap", or a mesh such as "4x2".

    Raises:
      UserError: a name of another form, or a mesh of another size.
    """
    match = re.fullmatch(r"(\d+)x(\d+)|pmap", name)
    if match is None:
        raise UserError(f"--layouts: {name!r} is neither pmap nor a mesh such as {len(devices)}x1.")
    sizes = (len(devices), 1) if name == "pmap" else tuple(map(int, match.groups()))
    mesh = sharding.make_mesh(list(devices), sharding.MeshConfig(*sizes))
    return make_parallel(mesh, "pmap" if name == "pmap" else "jit")


def device_facts() -> dict[str, Any]:
    """What was measured on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform, "kind": device.device_kind, "count": jax.device_count(),
        "jax": jax.__version__,
    }  # fmt: skip
