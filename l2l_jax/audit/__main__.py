r"""Audit the unlearned model of a run: `python -m l2l_jax.audit --workdir=runs/digits_mae`.

To audit an unlearned model from elsewhere, name its config and the original model:

    python -m l2l_jax.audit --config=configs/digits_mae.py --config.model.pretrained=ORIGINAL \
        --unlearned=UNLEARNED --workdir=runs/my_audit
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import load_config, parse_flags, run_program, show, together
from l2l_jax.cli.unlearned_flag import UNLEARNED
from l2l_jax.errors import UserError

REQUIRE = flags.DEFINE_enum(
    "require",
    None,
    ["forgotten", "hidden"],
    "End with exit code 2 unless the verdict is 'forgotten', or at least 'hidden'.",
)

UNMET = 2  # exit code if the verdict does not meet --require


def main(argv: Sequence[str]) -> int:
    """Audit the model named on the command line, print the verdict and return the exit code."""
    raw, workdir = parse_flags(argv)
    config = load_config(raw)
    # Imported late to report a mistyped flag immediately.
    from l2l_jax.audit.verdict import REQUIREMENTS
    from l2l_jax.experiment import pipeline as experiment
    from l2l_jax.report.tables import console

    config = dataclasses.replace(config, audit=dataclasses.replace(config.audit, enabled=True))
    unlearned = pathlib.Path(UNLEARNED.value or workdir / "unlearned")
    with together():
        if not unlearned.exists():
            hint = "run the main program first, or name a model with --unlearned"
            raise UserError(f"There is no unlearned model to audit: {unlearned} does not exist; {hint}.")
    report = experiment.audit(config, workdir, unlearned)
    show(f"{console(report)}\n\nReport: {workdir / 'report' / 'report.html'}")
    met = REQUIRE.value is None or report["audit"]["verdict"]["finding"] in REQUIREMENTS[REQUIRE.value]
    return 0 if met else UNMET


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
