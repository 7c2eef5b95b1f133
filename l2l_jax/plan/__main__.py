"""Plan a run on other accelerators: `python -m l2l_jax.plan --config=… --topology=v5e:4x4`.

TPUs: the compiler that would run there (libtpu, `pip install 'jax[tpu]'`) compiles the recipe's own step
and its restoration for the slice; nothing is run and no parameters are made. GPUs (h100:8): the programs are
lowered, and only what that shows is told. docs/guides/scaling.md says what the figures mean.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import parse_flags, run_program
from l2l_jax.cli.phase_flags import LAYOUTS, OUTPUT, STAGE
from l2l_jax.errors import UserError
from l2l_jax.plan import devices
from l2l_jax.plan.chips import parse_topology

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Which devices: a TPU slice as v5e:4x4 or v4:2x2x4, or GPUs as h100:8."
)
PROGRAMS = ("step", "restoration", "evaluation")
WHICH = flags.DEFINE_list("programs", list(PROGRAMS), "What to look at, of step, restoration and evaluation.")


def main(argv: Sequence[str]) -> None:
    """Compile, print tables and write the figures."""
    recipe, run = parse_flags(argv)
    if TOPOLOGY.value is None:
        raise UserError("Which devices? Try --topology=v5e:4x4, or h100:8.")
    topology = parse_topology(TOPOLOGY.value)
    if unknown := [name for name in WHICH.value if name not in PROGRAMS]:
        raise UserError(f"--programs: {unknown[0]!r} is not one of {', '.join(PROGRAMS)}.")
    devices.prepare(topology)
    # Imported late: JAX reads its environment when it is imported.
    import jax

    from l2l_jax.config import parse_config
    from l2l_jax.experiment.phase import open_phase
    from l2l_jax.plan.figures import figures
    from l2l_jax.plan.recipe import programs
    from l2l_jax.plan.tables import heading, program_text

    config = parse_config(recipe)
    stage, there = open_phase(config, STAGE.value), devices.described(topology)
    print(heading(topology, STAGE.value, run.name, stage.training.batch_size, len(there)))
    rows = []
    for planned in programs(config, stage, LAYOUTS.value, there, WHICH.value):
        rows.append(figures(planned, topology))
        print(program_text(rows[-1], topology), flush=True)
    report = {
        "recipe": run.name, "stage": STAGE.value, "topology": topology.name, "devices": len(there),
        "chip": topology.chip._asdict(), "jax": jax.__version__, "programs": rows,
    }  # fmt: skip
    path = pathlib.Path(OUTPUT.value or f"plan_{run.name}_{topology.name.replace(':', '_')}.json")
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"Figures: {path}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
