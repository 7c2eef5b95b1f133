"""Network traffic of a step, read from the compiled program: `python -m benchmarks traffic`.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m benchmarks traffic --config=configs/vqgan.py

Nothing is executed and no parameters are created, so published sizes need only compilation, and virtual
devices suffice. Bytes are those that every device sends with ring algorithms.
"""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from benchmarks.turns import write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.cli.phase_flags import LAYOUTS, STAGE

QUICKLY = {"xla_backend_optimization_level": 0}
"""Compiler options: machine code is not needed."""


def main(argv: Sequence[str]) -> None:
    """Compile the step on every layout and print a table."""
    raw, _ = parse_flags(argv)
    # Late imports, to report mistyped flags immediately.
    from benchmarks.layouts import device_facts, parse_layouts, step_flops
    from l2l_jax.experiment.phase import open_phase

    phase = open_phase(load_config(raw), STAGE.value)
    rows = {name: traffic(phase, parallel) for name, parallel in parse_layouts(LAYOUTS.value, phase).items()}
    facts = device_facts()
    flops, size = step_flops(phase), phase.training.batch_size
    where = f"{facts['count']} devices ({facts['kind']})"
    print(f"{where}, batch {size}, {STAGE.value}, {flops / 1e12:.3g} TFLOP a step\n")
    print(table(rows))
    write_report({"device": facts, "stage": STAGE.value, "flops": flops, "layouts": rows})


def traffic(phase: Any, parallel: Any) -> dict[str, Any]:
    """Return the bytes that each device sends per step by kind of collective, and the memory of one device.

    Returns:
      `{"collectives": {kind: {"count", "bytes_sent"}}, "arguments_bytes", "temporary_bytes"}`.
    """
    import jax

    from l2l_jax.plan.collectives import collectives, summary
    from l2l_jax.plan.program import Program

    step, arguments = phase.step(parallel)
    options = QUICKLY if jax.default_backend() == "cpu" else {}
    compiled = step.lower(*arguments).compile(options)
    memory = compiled.memory_analysis()
    return {
        "collectives": summary(collectives(Program(compiled.as_text()))),
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def table(rows: dict[str, Any]) -> str:
    """Format megabytes by layout and kind."""
    kinds = sorted({kind for row in rows.values() for kind in row["collectives"]})
    lines = []
    for name, row in rows.items():
        sent = [row["collectives"].get(kind, {}).get("bytes_sent", 0) / 1e6 for kind in kinds]
        lines.append([name, *sent, sum(sent), row["arguments_bytes"] / 1e6, row["temporary_bytes"] / 1e6])
    header = ["layout", *(f"{kind} MB" for kind in kinds), "sent MB", "state + batch MB", "temporary MB"]
    return tabulate(lines, header, tablefmt="github", floatfmt=".3f")
