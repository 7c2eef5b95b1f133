"""Compare unlearning methods: `python -m l2l_jax.compare --config=configs/digits_mae.py:encoder`.

Every method starts from the same pretrained model. Finished rows are not computed again. With `--front`, all
methods run on the same grid of settings with several seeds, which yields a Pareto front of each method; see
research/digits/comparison.md.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from l2l_jax.cli.common import load_config, parse_flags, run_program, show, together
from l2l_jax.errors import UserError

if TYPE_CHECKING:
    from l2l_jax.config import Config

ALPHAS = flags.DEFINE_list(
    "alphas", [], "Ablation: weights of the forget term for the paper's method, e.g. 0.0,0.1,0.25,0.5,1.0."
)
PROXY = flags.DEFINE_list(
    "proxy",
    [],
    "Classes that replace the retain classes in the row 'encoder, proxy retain'. "
    "Default: config.data.proxy, or else every other retain class.",
)
GENERATED = flags.DEFINE_bool("generated", False, "Add a row with retain images made by the original model.")
FRONT = flags.DEFINE_bool(
    "front", False, "Pareto fronts: run every method on the same grid of settings, with several seeds."
)
METHODS = flags.DEFINE_list("methods", [], "With --front: methods. Default: all.")
BUDGETS = flags.DEFINE_list("budgets", [], "With --front: retain budgets, e.g. 1.05,1.1,1.25,1.5.")
WEIGHTS = flags.DEFINE_list("weights", [], "With --front: fixed weights of the forget term, e.g. 0.05,0.2,1.")
EPSILON_RATIOS = flags.DEFINE_list(
    "epsilon_ratios", [], "With --front: values used instead of --weights by the method epsilon; as many."
)
RATES = flags.DEFINE_list("rates", [], "With --front: learning rates. Default: that of the config.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "With --front: seeds of every setting.")
SEQUENCE = flags.DEFINE_list(
    "sequence", [], "Classes to forget one after the other; see research/digits/comparison.md."
)
LIMIT = flags.DEFINE_float(
    "limit",
    0.5,
    "With --front: greatest retain cost included in the area: 0.5 is 50% more error.",
    lower_bound=1e-3,
)


def main(argv: Sequence[str]) -> None:
    """Run the comparison given on the command line and print its table."""
    raw, workdir = parse_flags(argv)
    _check_flags()
    run = _front if FRONT.value else _sequence if SEQUENCE.value else _methods
    show(run(load_config(raw), workdir))


def _check_flags() -> None:
    """Raise a UserError for flags of another kind of comparison, which would have no effect."""
    kind = "--front" if FRONT.value else "--sequence" if SEQUENCE.value else ""
    front = (METHODS, BUDGETS, WEIGHTS, EPSILON_RATIOS, RATES, SEEDS, LIMIT)
    others = {"--front": (SEQUENCE, ALPHAS, PROXY, GENERATED), "--sequence": (ALPHAS, PROXY, GENERATED)}
    for flag in others.get(kind, ()):
        if flag.present:
            raise UserError(f"--{flag.name} cannot be combined with {kind}: leave out one of them.")
    for own in front if kind != "--front" else ():
        if own.present:
            raise UserError(f"--{own.name} requires --front: add it, or leave out --{own.name}.")


# These functions return the text to print. They import late to report a mistyped flag immediately.


def _methods(config: "Config", workdir: pathlib.Path) -> str:
    from l2l_jax.compare.methods import compare, tables

    with together():
        alphas = _numbers(ALPHAS, "weights")
    rows = compare(config, workdir, alphas, PROXY.value, GENERATED.value)
    return f"{tables(rows)}\n\nComparison: {workdir / 'comparison'}"


def _front(config: "Config", workdir: pathlib.Path) -> str:
    from l2l_jax.compare import front_report
    from l2l_jax.compare.front import Grid, run_front
    from l2l_jax.methods import METHODS as KNOWN

    with together():
        if METHODS.present and not METHODS.value:
            raise UserError(f"--methods= names no method; known: {', '.join(KNOWN)}. Without it: all.")
        if wrong := [seed for seed in SEEDS.value if not seed.isdecimal()]:
            given = f"--seeds={','.join(SEEDS.value)}"
            raise UserError(f"{given}: seeds must be whole numbers, 0 or greater, not {wrong[0]!r}.")
        grid = Grid(
            methods=tuple(METHODS.value or KNOWN),
            budgets=_numbers(BUDGETS, "budgets", 1.0),
            weights=_numbers(WEIGHTS, "weights"),
            ratios=_numbers(EPSILON_RATIOS, "ratios"),
            rates=_numbers(RATES, "rates"),
            seeds=list(map(int, SEEDS.value)),
        )
    report = run_front(config, workdir, grid, LIMIT.value)
    return f"{front_report.tables(report)}\n\nFront: {workdir / 'front'}"


def _sequence(config: "Config", workdir: pathlib.Path) -> str:
    from l2l_jax.compare.sequence import run_sequence, table

    return table(run_sequence(config, workdir, SEQUENCE.value))


def _numbers(flag: flags.FlagHolder, noun: str, least: float = 0.0) -> list[float]:
    given = f"--{flag.name}={','.join(flag.value)}"
    try:
        numbers = [float(number) for number in flag.value]
    except ValueError as error:
        raise UserError(f"{given}: {error}.") from None
    if any(not least <= number < float("inf") for number in numbers):
        bound = "not negative" if not least else f"at least {least:g}"
        raise UserError(f"{given}: {noun} must be finite and {bound}.")
    return numbers


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
