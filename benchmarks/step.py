"""Speed of a config's training step on these devices: `python -m benchmarks step --config=…`.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m benchmarks step --config=configs/digits_mae.py --layouts=8x1,4x2,pmap

All layouts are measured in one run, interleaved: compare them, not runs. Images are random and lie in the
host's memory. Besides the step: handing a batch over (under pmap a part of every call), making what student
and teacher see ("prepare"), and that with loss and gradient ("gradient"). What is left of a step is the
optimiser and, under pmap, the sum over the devices.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags
from tabulate import tabulate

from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.cli.phase_flags import LAYOUTS, OUTPUT, STAGE

ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each is timed; the median counts.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Time the step on every layout and print a table."""
    recipe, _ = parse_flags(argv)
    # Imported late: a mistyped flag is answered at once.
    from benchmarks.layouts import device_facts, parse_layouts
    from l2l_jax.experiment.phase import open_phase

    stage = open_phase(load_config(recipe), STAGE.value)
    layouts = parse_layouts(LAYOUTS.value, stage)
    runs = {name: Run(stage, parallel) for name, parallel in layouts.items()}
    for _ in range(ROUNDS.value):
        for run in runs.values():
            run.time_once()
    images = stage.training.batch_size * len(stage.objective.sets)
    rows = {name: run.figures(images) for name, run in runs.items()}
    facts = device_facts()
    print(f"{facts['count']} devices ({facts['kind']}), {images} images a step, {STAGE.value}\n")
    print(table(rows))
    if OUTPUT.value:
        report = {"device": facts, "stage": STAGE.value, "rounds": ROUNDS.value, "layouts": rows}
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class Run:
    """A stage on a layout, compiled and ready.

    Args:
      stage: a `layouts.TrainingPhase`.
      parallel: the layout.
    """

    def __init__(self, stage: Any, parallel: Any):
        import jax

        from l2l_jax.train import sharding

        self._parallel = parallel
        rng = np.random.default_rng(0)
        value_range = stage.config.model.value_range
        self._images = {
            name: rng.integers(stage.config.model.codebook_size, size=x.shape, dtype=x.dtype)
            if name in stage.codes
            else _random_images(x.shape, x.dtype, value_range, rng)
            for name, x in stage.batch().items()
        }
        step, shapes = stage.step(parallel)
        start = time.perf_counter()
        self._step = step.lower(*shapes).compile()
        self.compile_seconds = time.perf_counter() - start
        params = jax.device_get(jax.jit(stage.config.model.init)(jax.random.key(0)))
        self._state = stage.state(params, parallel.mesh)
        self._frozen = sharding.place(
            stage.objective.cast({part: params[part] for part in stage.objective.frozen}), parallel.mesh
        )
        from benchmarks.layouts import step_halves  # JAX is imported after the flags are read

        self._parts = {name: self._compiled(part) for name, part in step_halves(stage, parallel).items()}
        self._seconds: dict[str, list[float]] = {}

    def _compiled(self, function: Callable) -> Callable:
        import jax

        if self._parallel.kind == "jit":
            return jax.jit(function)
        devices = list(self._parallel.mesh.devices.flat)
        return jax.pmap(function, self._parallel.axis_name, in_axes=(None, None, 0), devices=devices)

    def time_once(self) -> None:
        """One step and its parts; the first call, which compiles the parts, does not count."""
        import jax

        def timed(name, function, *arguments):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            taken.setdefault(name, []).append(time.perf_counter() - start)
            return result

        taken = self._seconds if self._seconds else {}
        rows = timed("hand over", self._parallel.rows, self._images)
        for name, part in self._parts.items():
            timed(name, part, self._state.params, self._frozen, rows)
        self._state, _ = timed("step", self._step, self._state, self._frozen, rows)
        if not self._seconds:
            self._seconds = {name: [] for name in taken}
            self.time_once()

    def time_step(self) -> float:
        """Seconds of one step alone, on rows that lie on the devices."""
        import jax

        rows = jax.block_until_ready(self._parallel.rows(self._images))
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, self._frozen, rows))
        return time.perf_counter() - start

    def figures(self, images: int) -> dict[str, float]:
        """Medians in milliseconds, steps and images per second, seconds to compile."""
        median = {name: statistics.median(values) for name, values in self._seconds.items()}
        return {
            "compile_seconds": self.compile_seconds,
            "steps_per_second": 1 / median["step"],
            "images_per_second": images / median["step"],
            **{f"{name} ms": 1000 * value for name, value in median.items()},
        }


def _random_images(
    shape: tuple[int, ...], dtype: np.dtype, value_range: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    low, high = value_range
    return (low + (high - low) * rng.random(shape, np.float32)).astype(np.float32)


def table(rows: dict[str, dict[str, float]]) -> str:
    """One line a layout, and how long its step takes compared with the first."""
    first = next(iter(rows.values()))["step ms"]
    parts = ("hand over", "prepare", "gradient", "step")
    lines = []
    for name, row in rows.items():
        times = [row[f"{part} ms"] for part in parts]
        ratio = row["step ms"] / first
        lines.append([name, *times, ratio, row["images_per_second"], row["compile_seconds"]])
    header = ["layout", *(f"{part} ms" for part in parts), "ratio", "images/s", "compile s"]
    return tabulate(lines, header, tablefmt="github", floatfmt=".2f")
