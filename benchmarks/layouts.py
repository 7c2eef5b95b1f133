"""Device layouts, and timing of a step and its parts on them."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.experiment.phase import TrainingPhase, parse_layout
from l2l_jax.train import sharding
from l2l_jax.train.parallel import Parallel, make_parallel
from l2l_jax.train.step import scaled_pixels


def parse_layouts(names: Sequence[str], phase: TrainingPhase) -> dict[str, Parallel]:
    """Return layouts by name; without names, one of each kind that the devices support.

    Raises:
      UserError: A name is invalid, a mesh has a wrong size, or the batch cannot be split.
    """
    count = jax.device_count()
    default = [f"{count}x1", "pmap"]
    if count > 1:
        half = [f"{count // 2}x2"] if count % 2 == 0 and count > 2 else []
        default[1:1] = [*half, f"1x{count}"]
    training = phase.training
    chosen = {name: parse_layout(name, jax.devices()) for name in names or default}
    sharding.check_batch_size(training.batch_size, training.batch_parts, sharding.make_mesh(), "batch_size")
    return chosen


def step_flops(phase: TrainingPhase) -> float:
    """Return the floating-point operations of a step on the global batch, counted by XLA before compilation.

    Loop bodies are counted once, which includes gradient accumulation.
    """
    single = make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit")
    step, arguments = phase.step(single)
    return float(step.lower(*arguments).cost_analysis()["flops"])


class Run:
    """A compiled step of a phase on a layout, with random parameters."""

    def __init__(self, phase: TrainingPhase, parallel: Parallel):
        self._phase, self._parallel, model = phase, parallel, phase.config.model
        rng, (low, high) = np.random.default_rng(0), model.value_range

        def random(name: str, x: jax.ShapeDtypeStruct) -> np.ndarray:
            if name in phase.codes:
                return rng.integers(model.codebook_size, size=x.shape, dtype=x.dtype)
            if x.dtype == np.uint8:
                return rng.integers(0, 256, x.shape, np.uint8)
            return (low + (high - low) * rng.random(x.shape, np.float32)).astype(np.float32)

        self._images = {name: random(name, x) for name, x in phase.batch().items()}
        step, shapes = phase.step(parallel)
        start = time.perf_counter()
        self._step = step.lower(*shapes).compile()
        self.compile_seconds = time.perf_counter() - start
        self.params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
        self.state = phase.state(self.params, parallel.mesh)
        frozen = phase.objective.cast({part: self.params[part] for part in phase.objective.frozen})
        self._frozen = sharding.place(frozen, parallel.mesh)
        self._parts = {name: self._compiled(part) for name, part in self._halves().items()}
        self._seconds: dict[str, list[float]] = {}

    def _halves(self) -> dict[str, Callable]:
        """Return the first part of a step, and the first two parts: `(params, frozen, rows) -> arrays`."""
        objective, parallel = self._phase.objective, self._parallel

        def inputs(frozen, rows):
            pixels = scaled_pixels(rows, self._phase.config.model.value_range)
            return objective.prepare(frozen, pixels, jax.random.key(0), parallel.axis_name)

        def prepare(params, frozen, rows):
            return inputs(parallel.gather(frozen), rows)

        def gradient(params, frozen, rows):
            params, frozen = parallel.gather((objective.cast(params), frozen))
            return objective.gradients(params, frozen, inputs(frozen, rows), jnp.float32(0), parallel.mean)

        return {"prepare": prepare, "gradient": gradient}

    def _compiled(self, function: Callable) -> Callable:
        if self._parallel.kind == "jit":
            return jax.jit(function)
        devices = list(self._parallel.mesh.devices.flat)
        return jax.pmap(function, self._parallel.axis_name, in_axes=(None, None, 0), devices=devices)

    def time_once(self) -> None:
        """Time one step and its parts; the first call, which compiles the parts, is discarded."""

        def timed(name, function, *arguments):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            taken.setdefault(name, []).append(time.perf_counter() - start)
            return result

        taken = self._seconds if self._seconds else {}
        rows = timed("hand over", self._parallel.rows, self._images)
        for name, part in self._parts.items():
            timed(name, part, self.state.params, self._frozen, rows)
        self.state, _ = timed("step", self._step, self.state, self._frozen, rows)
        if not self._seconds:
            self._seconds = {name: [] for name in taken}
            self.time_once()

    def time_step(self) -> float:
        """Return the seconds of one step, with rows already on the devices."""
        rows = jax.block_until_ready(self._parallel.rows(self._images))
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self._step(self.state, self._frozen, rows))
        return time.perf_counter() - start

    def metrics(self, images: int) -> dict[str, float]:
        """Return medians in milliseconds, steps and images per second, and compile time in seconds."""
        median = {name: statistics.median(values) for name, values in self._seconds.items()}
        return {
            "compile_seconds": self.compile_seconds,
            "steps_per_second": 1 / median["step"],
            "images_per_second": images / median["step"],
            **{f"{name} ms": 1000 * value for name, value in median.items()},
        }


def device_facts() -> dict[str, Any]:
    """Describe the device used for the measurements."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "jax": jax.__version__,
    }
