"""Cost of a retain budget: `python -m benchmarks budget --config=configs/digits_mae.py`.

Times an unlearning step and a measurement on the config's validation images, interleaved, and reports the
relative overhead of measuring every `config.unlearn.budget_every` steps. Parameters are random.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks.turns import in_turns, write_report
from l2l_jax.cli.common import load_config, parse_flags

MEASUREMENTS = flags.DEFINE_integer(
    "measurements",
    10,
    "Number of timed measurements, with ten steps each; the median is reported.",
    lower_bound=1,
)

STEPS = 10
"""Timed steps per measurement."""


def main(argv: Sequence[str]) -> None:
    """Time steps and measurements, and print the cost of the budget."""
    raw, _ = parse_flags(argv)
    from benchmarks.layouts import device_facts  # late import, to report mistyped flags immediately

    facts, metrics = device_facts(), cost(load_config(raw), MEASUREMENTS.value)
    print(f"{facts['count']} devices ({facts['kind']})")
    print(
        "step {step_ms:.1f} ms, measurement {measurement_ms:.1f} ms on {images} images; one every {every} "
        "steps makes a run {longer:.1%} longer".format(**metrics)
    )
    write_report({"device": facts, **metrics})


def cost(config: Any, measurements: int) -> dict[str, float]:
    """Return medians in milliseconds, and the relative increase of the run time by measurements."""
    import jax
    import jax.numpy as jnp

    from benchmarks.layouts import Run
    from l2l_jax.evals.tasks import budget_task
    from l2l_jax.experiment.budget import validation_images
    from l2l_jax.experiment.phase import open_phase
    from l2l_jax.train import sharding
    from l2l_jax.train.parallel import make_parallel
    from l2l_jax.train.validation_errors import MaskedErrors

    cfg, model = config.unlearn, config.model
    parallel = make_parallel(sharding.make_mesh(config=config.mesh), config.parallel)
    run = Run(open_phase(config, "unlearn"), parallel)
    images = validation_images(config, cfg.budget_images)
    mask = budget_task(config.evaluate.tasks).mask(model.image_size)
    errors = MaskedErrors(model, mask, images, rows=2 * cfg.batch_size, seed=0, parallel=parallel)
    placed = sharding.place(run.params, parallel.mesh)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def measurement() -> float:
        start = time.perf_counter()
        jax.block_until_ready((errors.start({**placed, **run.state.result}), copy(run.state.result)))
        return time.perf_counter() - start

    def step() -> float:
        return sum(run.time_step() for _ in range(STEPS)) / STEPS

    seconds = in_turns({"step": step, "measurement": measurement}, measurements)
    step_ms, measurement_ms = (1000 * statistics.median(taken) for taken in seconds.values())
    return {
        "step_ms": step_ms,
        "measurement_ms": measurement_ms,
        "every": cfg.budget_every,
        "images": sum(map(len, images.values())),
        "longer": measurement_ms / (step_ms * cfg.budget_every),
    }
