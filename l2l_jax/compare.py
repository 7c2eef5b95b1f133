"""Compare unlearning methods: `python -m l2l_jax.compare --config=configs/digits_mae.py`.

Every method starts from the same pretrained model. What an earlier call finished is not computed anew. With
`--front` each method is tried with one grid of settings and several seeds: see docs/comparison.md.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from l2l_jax.command_line import parse_flags, run_program
from l2l_jax.errors import Diverged, UserError

ALPHAS = flags.DEFINE_list(
    "alphas", [], "Ablation: weights of the forget term of the paper's method, as 0.0,0.1,0.25,0.5,1.0."
)
PROXY = flags.DEFINE_list(
    "proxy", [], "Classes that stand in for the retain classes in the row 'encoder, proxy retain'. "
    "Default: config.data.proxy, or else every other retain class."
)  # fmt: skip
FRONT = flags.DEFINE_bool("front", False, "Every method with the same grid of settings, several seeds each.")
METHODS = flags.DEFINE_list("methods", [], "With --front: methods. Default: all.")
BUDGETS = flags.DEFINE_list("budgets", [], "With --front: retain budgets, as 1.05,1.1,1.25,1.5.")
WEIGHTS = flags.DEFINE_list("weights", [], "With --front: fixed weights of the forget term, as 0.05,0.2,1.")
EPSILON_RATIOS = flags.DEFINE_list(
    "epsilon_ratios", [], "With --front: what the method epsilon has instead of weights; as many."
)
RATES = flags.DEFINE_list("rates", [], "With --front: learning rates. Default: the recipe's.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "With --front: seeds of every setting.")
SEQUENCE = flags.DEFINE_list(
    "sequence", [], "Requests after one another: classes to forget, as 5,7,9; see docs/comparison.md."
)
LIMIT = flags.DEFINE_float(
    "limit", 0.5, "With --front: greatest retain cost that counts for the area: 0.5 is 50 % more error.",
    lower_bound=1e-3,
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Run the comparison that the command line asks for and print its table."""
    recipe, workdir = parse_flags(argv)
    # Imported late: a mistyped flag is answered at once.
    from l2l_jax.collectives import barrier, is_primary
    from l2l_jax.config import parse_config
    from l2l_jax.evaluation import comparison_report

    if FRONT.value:
        _front(recipe, workdir)
        return
    if SEQUENCE.value:
        _sequence(recipe, workdir)
        return
    with barrier():
        alphas, config = _numbers(ALPHAS, "weights"), parse_config(recipe)
    rows = compare(config, workdir, alphas, PROXY.value)
    if is_primary():
        print(comparison_report.tables(rows))
        print(f"\nComparison: {workdir / 'comparison'}")


def _front(recipe: Any, workdir: pathlib.Path) -> None:
    from l2l_jax.collectives import barrier, is_primary
    from l2l_jax.config import parse_config
    from l2l_jax.evaluation import front_report
    from l2l_jax.front import Grid, run_front
    from l2l_jax.objectives.methods import METHODS as KNOWN

    with barrier():
        config = parse_config(recipe)
        grid = Grid(
            methods=tuple(METHODS.value or KNOWN),
            budgets=_numbers(BUDGETS, "budgets", 1.0),
            weights=_numbers(WEIGHTS, "weights"),
            ratios=_numbers(EPSILON_RATIOS, "ratios"),
            rates=_numbers(RATES, "rates"),
            seeds=[int(seed) for seed in _numbers(SEEDS, "seeds")],
        )
    report = run_front(config, workdir, grid, LIMIT.value)
    if is_primary():
        print(front_report.tables(report))
        print(f"\nFront: {workdir / 'front'}")


def _sequence(recipe: Any, workdir: pathlib.Path) -> None:
    from l2l_jax.collectives import barrier, is_primary
    from l2l_jax.config import parse_config
    from l2l_jax.sequence import run_sequence, table

    with barrier():
        config = parse_config(recipe)
    rows = run_sequence(config, workdir, SEQUENCE.value)
    if is_primary():
        print(table(rows))


def _numbers(flag: flags.FlagHolder, what: str, least: float = 0.0) -> list[float]:
    given = f"--{flag.name}={','.join(flag.value)}"
    try:
        numbers = [float(number) for number in flag.value]
    except ValueError as error:
        raise UserError(f"{given}: {error}.") from None
    if any(not least <= number < float("inf") for number in numbers):
        said = "not negative" if not least else f"at least {least:g}"
        raise UserError(f"{given}: {what} are finite and {said}.")
    return numbers


def compare(
    config: Any, workdir: pathlib.Path, alphas: Sequence[float] = (), proxy: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Unlearn with every method from one pretrained model, evaluate, and write `workdir/comparison`.

    Args:
      config: a `l2l_jax.config.Config`; its method, alpha and proxies make the first row after the
        original model.
      workdir: folder of the run; `config`'s own pretrained model in it is used or made.
      alphas: further weights of the forget term for the paper's method.
      proxy: classes of the proxy row.

    Returns:
      By row: `{"retain": figures, "forget": figures}`, with "audit" where `config.audit` asks for one, or
      `{"failed": reason}` for a method that diverged.

    Raises:
      UserError: something the user can mend. Interrupted: asked to stop; the state is saved.
    """
    from l2l_jax import experiment
    from l2l_jax.audit.run import Audit, check_yardstick
    from l2l_jax.collectives import barrier, on_primary
    from l2l_jax.data.splits import retained_names
    from l2l_jax.evaluation import comparison_report
    from l2l_jax.evaluation.evaluate import Evaluation
    from l2l_jax.workdir import Workdir

    folders = Workdir(workdir, config)
    with barrier():
        if config.audit.enabled:
            check_yardstick(config)
        evaluation = Evaluation(config, folders.evaluation)
        sets = experiment.training_sets(config, evaluation.train)
    original = experiment.original_params(config, folders, evaluation.train)
    pretrained = config.pretrained or str(folders.pretrained)
    rows = {"original": _evaluated(workdir, "original", config, evaluation, lambda: original)}
    auditor = None
    if config.audit.enabled:
        auditor = Audit(config, evaluation, sets, original, workdir / "comparison" / "audit")
    stand_ins = tuple(proxy) or config.data.proxy or retained_names(config.data, evaluation.class_names)[::2]
    for name, variant in variants(config, pretrained, alphas, stand_ins):
        folder = workdir / "comparison" / _folder(name)

        def unlearned(variant=variant, folder=folder):
            with barrier():
                sets = experiment.training_sets(variant, evaluation.train)
            return experiment.unlearned_params(variant, Workdir(folder, variant), original, sets)

        rows[name] = _evaluated(workdir, name, variant, evaluation, unlearned)
        if auditor is not None and "failed" not in rows[name]:
            rows[name]["audit"] = auditor.audit(_folder(name), unlearned())
    shown = {name: row.pop("shown", None) for name, row in rows.items()}
    on_primary(
        lambda: comparison_report.write(workdir / "comparison", config, evaluation, rows, shown, alphas)
    )
    return rows


def variants(
    config: Any, pretrained: str, alphas: Sequence[float], stand_ins: Sequence[Any]
) -> Iterator[tuple[str, Any]]:
    """The rows after the original: name and configuration of each; `stand_ins` are the proxies.

    An ablation of the weight is one of fixed weights: with `alphas` no row has a retain budget.
    """
    from l2l_jax.config import BANKED_METHODS
    from l2l_jax.objectives.methods import METHODS

    if alphas:
        config = dataclasses.replace(config, unlearn=dataclasses.replace(config.unlearn, retain_budget=None))

    def variant(proxies=None, **unlearn):
        return dataclasses.replace(
            config,
            pretrained=pretrained,
            data=dataclasses.replace(config.data, **(proxies or {"proxy": ()})),
            unlearn=dataclasses.replace(config.unlearn, **unlearn),
        )

    for method in METHODS:
        bank = {} if method in BANKED_METHODS else {"token_bank": 0, "noise_bank": 0}
        yield method, variant(method=method, **bank)
    replaced = {"proxy": tuple(stand_ins), "retain_ratio": 1.0}
    yield "encoder, proxy retain", variant(replaced, method="encoder")
    for alpha in alphas:
        if alpha != config.unlearn.alpha:
            yield f"encoder, alpha {alpha:g}", variant(method="encoder", alpha=alpha)


def _evaluated(workdir, name, config, evaluation, params) -> dict[str, Any]:
    """The figures of a row and, in the primary process, the restorations to show; read if they are there."""
    from l2l_jax.collectives import from_primary, is_primary, on_primary
    from l2l_jax.evaluation import comparison_report

    folder = workdir / "comparison" / _folder(name)
    path = folder / "figures.json"
    settings = json.loads(json.dumps(config.describe()))
    for where in ("mesh", "parallel", "audit"):  # they change nothing of these figures
        del settings[where]
    row = from_primary(lambda: _finished(path, settings))
    if row is None:
        try:
            result = evaluation.evaluate(params(), name)
        except Diverged as error:
            row, shown = {"failed": str(error)}, None
        else:
            row, shown = result.figures, result.shown

        def keep():
            folder.mkdir(parents=True, exist_ok=True)
            if shown is not None:
                comparison_report.save_shown(folder, shown)
            path.write_text(json.dumps({**row, "config": settings}, indent=2) + "\n")

        on_primary(keep)
    return {**row, "shown": comparison_report.load_shown(folder) if is_primary() else None}


def _finished(path: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of a row that was computed before with the same settings."""
    if not path.exists():
        return None
    row = json.loads(path.read_text())
    return row if row.pop("config") == settings else None


def _folder(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
