"""Plan a run on other accelerators: `python -m l2l_jax.plan --config=… --topology=v5e:4x4`, or `h100:1`.

The compiler for the target (TPUs: `pip install 'jax[tpu]'`, GPUs: `'jax[cuda12]'`) compiles the config's
training step, inpainting and feature networks. Nothing is executed and no parameters are created.
docs/guides/scaling.md explains the numbers.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import parse_flags, run_program
from l2l_jax.cli.phase_flags import LAYOUTS, OUTPUT, STAGE
from l2l_jax.errors import UserError
from l2l_jax.plan.chips import described, parse_topology, prepare

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Target devices: a TPU slice such as v5e:4x4 or v4:2x2x4, or GPUs such as h100:8."
)
PROGRAMS = ("step", "restoration", "evaluation")
WHICH = flags.DEFINE_list("programs", list(PROGRAMS), "Programs to plan: step, restoration, evaluation.")
QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Compile in minutes with little optimization; temporaries and memory traffic are overestimated.",
)


def main(argv: Sequence[str]) -> None:
    """Compile the programs, print tables and write the results."""
    raw, run = parse_flags(argv)
    if TOPOLOGY.value is None:
        raise UserError("--topology is required, for example --topology=v5e:4x4 or --topology=h100:8.")
    topology = parse_topology(TOPOLOGY.value)
    if unknown := [name for name in WHICH.value if name not in PROGRAMS]:
        raise UserError(f"--programs: {unknown[0]!r} is not one of {', '.join(PROGRAMS)}.")
    prepare(topology)
    # Late imports, because JAX reads the environment when it is imported.
    import jax

    from l2l_jax.config import parse_config
    from l2l_jax.experiment.phase import open_phase
    from l2l_jax.plan.costs import heading, program_costs, program_text
    from l2l_jax.plan.programs import programs

    config = parse_config(raw)
    phase, devices = open_phase(config, STAGE.value), described(topology)
    print(heading(topology, STAGE.value, run.name, phase.training.batch_size, len(devices)))
    rows = []
    for planned in programs(config, phase, LAYOUTS.value, devices, WHICH.value):
        rows.append(program_costs(planned, topology, QUICK.value))
        print(program_text(rows[-1], topology), flush=True)
    report = {
        "config": run.name,
        "stage": STAGE.value,
        "topology": topology.name,
        "devices": len(devices),
        "chip": topology.chip._asdict(),
        "jax": jax.__version__,
        "programs": rows,
    }
    path = pathlib.Path(OUTPUT.value or f"plan_{run.name}_{topology.name.replace(':', '_')}.json")
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"Results: {path}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
