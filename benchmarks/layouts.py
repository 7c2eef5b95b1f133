"""Layouts of all devices, and parts of a step, to time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2l_jax.experiment.phase import TrainingPhase, parse_layout
from l2l_jax.train import sharding
from l2l_jax.train.parallel import Parallel, make_parallel
from l2l_jax.train.step import scaled_pixels


def parse_layouts(names: Sequence[str], phase: TrainingPhase) -> dict[str, Parallel]:
    """Layouts by name; without names one of each sort that the devices allow.

    Raises:
      UserError: a name of another form, a mesh of another size, or a batch that does not divide.
    """
    count = jax.device_count()
    default = [f"{count}x1", "pmap"]
    if count > 1:
        half = [f"{count // 2}x2"] if count % 2 == 0 and count > 2 else []
        default[1:1] = [*half, f"1x{count}"]
    how = phase.training
    chosen = {name: parse_layout(name, jax.devices()) for name in names or default}
    sharding.check_batch_size(how.batch_size, how.batch_parts, sharding.make_mesh(), "batch_size")
    return chosen


def step_flops(phase: TrainingPhase) -> float:
    """Floating-point operations of a step on the whole batch, as XLA counts them in the traced program.

    Loops, and with them accumulated parts but one, count once.
    """
    one = make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit")
    step, arguments = phase.step(one)
    return float(step.lower(*arguments).cost_analysis()["flops"])


def step_halves(phase: TrainingPhase, parallel: Parallel) -> dict[str, Callable]:
    """The first half of a step, and the first two: `(params, frozen, rows) -> arrays`."""

    def inputs(frozen, rows):
        pixels = scaled_pixels(rows, phase.config.model.value_range)
        return phase.objective.prepare(frozen, pixels, jax.random.key(0), parallel.axis_name)

    def prepare(params, frozen, rows):
        return inputs(parallel.gather(frozen), rows)

    def gradient(params, frozen, rows):
        params, frozen = parallel.gather((phase.objective.cast(params), frozen))
        alpha = jnp.float32(0)
        return phase.objective.gradients(params, frozen, inputs(frozen, rows), alpha, parallel.mean)

    return {"prepare": prepare, "gradient": gradient}


def device_facts() -> dict[str, Any]:
    """Return the device that was measured on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform, "kind": device.device_kind, "count": jax.device_count(),
        "jax": jax.__version__,
    }  # fmt: skip
