"""Cost of a retain budget: `python -m benchmarks budget --config=configs/digits_mae.py`.

Times a step of unlearning and a measurement on the recipe's own validation images, interleaved, and says by
how much `config.unlearn.budget_every` makes a run longer. Parameters are random.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.cli.phase_flags import OUTPUT

MEASUREMENTS = flags.DEFINE_integer(
    "measurements", 10, "How often a measurement is timed, with ten steps each; the median counts.",
    lower_bound=1,
)  # fmt: skip

STEPS = 10
"""Steps timed for every measurement."""


def main(argv: Sequence[str]) -> None:
    """Time steps and measurements, and print what the budget costs."""
    recipe, _ = parse_flags(argv)
    # Imported late: a mistyped flag is answered at once.
    from benchmarks.layouts import device_facts

    facts, figures = device_facts(), cost(load_config(recipe), MEASUREMENTS.value)
    print(f"{facts['count']} devices ({facts['kind']})")
    print(
        "step {step_ms:.1f} ms, measurement {measurement_ms:.1f} ms on {images} images; one every {every} "
        "steps makes a run {longer:.1%} longer".format(**figures)
    )
    if OUTPUT.value:
        report = json.dumps({"device": facts, **figures}, indent=2)
        pathlib.Path(OUTPUT.value).write_text(report + "\n", encoding="utf-8")


def cost(config: Any, measurements: int) -> dict[str, float]:
    """Medians in milliseconds, and the share by which measurements make a run longer.

    Args:
      config: a `l2l_jax.config.Config`.
      measurements: how many are timed.
    """
    import jax
    import jax.numpy as jnp

    from l2l_jax.evals.tasks import budget_task
    from l2l_jax.experiment.budget import validation_images
    from l2l_jax.experiment.phase import open_phase
    from l2l_jax.train import sharding
    from l2l_jax.train.parallel import make_parallel
    from l2l_jax.train.validation_errors import MaskedErrors

    how, model = config.unlearn, config.model
    parallel = make_parallel(sharding.make_mesh(config=config.mesh), config.parallel)
    stage = open_phase(config, "unlearn")
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    step, _ = stage.step(parallel)
    state = stage.state(params, parallel.mesh)
    frozen = sharding.place({part: params[part] for part in stage.objective.frozen}, parallel.mesh)
    rng = np.random.default_rng(0)
    low, high = model.value_range
    batch = {
        of: (low + (high - low) * rng.random(x.shape)).astype(np.float32) for of, x in stage.batch().items()
    }
    rows = parallel.rows(batch)
    images = validation_images(config, how.budget_images)
    mask = budget_task(config.evaluate.tasks).mask(model.image_size)
    errors = MaskedErrors(model, mask, images, rows=2 * how.batch_size, seed=0, parallel=parallel)
    rest = sharding.place(params, parallel.mesh)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def some_steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, _ = step(state, frozen, rows)
        jax.block_until_ready(state)

    def measurement() -> None:
        result = state.result
        jax.block_until_ready((errors.start({**rest, **result}), copy(result)))

    def timed(function: Callable[[], None]) -> float:
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)

    for function in (some_steps, measurement):  # compile
        function()
    pairs = [(timed(some_steps) / STEPS, timed(measurement)) for _ in range(measurements)]
    step_ms, measurement_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "step_ms": step_ms, "measurement_ms": measurement_ms, "every": how.budget_every,
        "images": sum(map(len, images.values())), "longer": measurement_ms / (step_ms * how.budget_every),
    }  # fmt: skip
