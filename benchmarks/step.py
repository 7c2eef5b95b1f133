"""Speed of a config's training step on these devices: `python -m benchmarks step --config=…`.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m benchmarks step --config=configs/digits_mae.py --layouts=8x1,4x2,pmap

All layouts are measured interleaved in one run; compare layouts, not runs. Images are random and stored in
host memory. In addition to the step, the benchmark times transferring a batch (part of every call under
pmap), computing the inputs of student and teacher ("prepare"), and these with loss and gradient ("gradient").
The remainder of a step is the optimizer and, under pmap, the sum over devices.
"""

from collections.abc import Sequence

from absl import flags
from tabulate import tabulate

from benchmarks.turns import write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.cli.phase_flags import LAYOUTS, STAGE

ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed steps per layout; the median is reported.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Time the step on every layout and print a table."""
    raw, _ = parse_flags(argv)
    # Late imports, to report mistyped flags immediately.
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
    """Format one line per layout, with the time of its step relative to the first layout."""
    first = next(iter(rows.values()))["step ms"]
    parts = ("hand over", "prepare", "gradient", "step")
    lines = []
    for name, row in rows.items():
        times = [row[f"{part} ms"] for part in parts]
        ratio = row["step ms"] / first
        lines.append([name, *times, ratio, row["images_per_second"], row["compile_seconds"]])
    header = ["layout", *(f"{part} ms" for part in parts), "ratio", "images/s", "compile s"]
    return tabulate(lines, header, tablefmt="github", floatfmt=".2f")
