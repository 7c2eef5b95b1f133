"""Speed of a config's training step on these devices: `python -m benchmarks step --config=…`.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m benchmarks step --config=configs/digits_mae.py --layouts=8x1,4x2,pmap

All layouts are measured in one run, interleaved: compare them, not runs. Images are random and lie in the
host's memory. Besides the step: handing a batch over (under pmap a part of every call), making what student
and teacher see ("prepare"), and that with loss and gradient ("gradient"). What is left of a step is the
optimiser and, under pmap, the sum over the devices.
"""

from collections.abc import Sequence

from absl import flags
from tabulate import tabulate

from benchmarks.turns import write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.cli.phase_flags import LAYOUTS, STAGE

ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each is timed; the median counts.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Time the step on every layout and print a table."""
    raw, _ = parse_flags(argv)
    # Imported late: a mistyped flag is answered at once.
    from benchmarks.layouts import Run, device_facts, parse_layouts
    from l2l_jax.experiment.phase import open_phase

    phase = open_phase(load_config(raw), STAGE.value)
    layouts = parse_layouts(LAYOUTS.value, phase)
    runs = {name: Run(phase, parallel) for name, parallel in layouts.items()}
    for _ in range(ROUNDS.value):
        for run in runs.values():
            run.time_once()
    images = phase.training.batch_size * len(phase.objective.sets)
    rows = {name: run.metrics(images) for name, run in runs.items()}
    facts = device_facts()
    print(f"{facts['count']} devices ({facts['kind']}), {images} images a step, {STAGE.value}\n")
    print(table(rows))
    write_report({"device": facts, "stage": STAGE.value, "rounds": ROUNDS.value, "layouts": rows})


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
