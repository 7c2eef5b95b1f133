"""Cost of unlearning and of retraining: `python -m benchmarks retraining --config=configs/fashion_mae.py`.

Unlearns the original model of the config, then trains models from random weights on the same retain images,
each for more steps, until one reconstructs retain validation images as well as the unlearned model. Times
include compilation and the measurements of a retain budget.
"""

import functools
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from tabulate import tabulate

from benchmarks.turns import write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.errors import UserError

LENGTHS = flags.DEFINE_list(
    "lengths",
    ["0.1", "0.2", "0.3", "0.4", "0.6", "0.8", "1", "1.4"],
    "Lengths of retraining to try in this order, relative to the pretraining in the config.",
)


def main(argv: Sequence[str]) -> None:
    """Unlearn and retrain, and print the time and the retain error of each model."""
    raw, _ = parse_flags(argv)
    from benchmarks.layouts import device_facts  # late import, to report mistyped flags immediately

    facts = device_facts()
    lengths = parse_lengths(LENGTHS.value)
    with tempfile.TemporaryDirectory() as folder:
        rows = costs(load_config(raw), lengths, pathlib.Path(folder))
    print(f"{facts['count']} devices ({facts['kind']})")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))
    unlearning, last = rows[0], rows[-1]
    if last["retain error"] <= unlearning["retain error"]:
        share = unlearning["CPU s"] / last["CPU s"]
        print(f"Unlearning takes {share:.2f} times the CPU time of retraining to its retain error.")
    else:
        print("No length reaches the retain error of the unlearned model.")
    write_report({"device": facts, "models": rows})


def parse_lengths(values: Sequence[str]) -> list[float]:
    """Return the lengths as numbers.

    Raises:
      UserError: There are none, or one is not a positive number.
    """
    try:
        lengths = [float(value) for value in values]
    except ValueError:
        lengths = []
    if not lengths or not all(0 < length < math.inf for length in lengths):
        raise UserError(f"--lengths={','.join(values)} must be positive numbers, such as 0.1,0.2,0.4.")
    return lengths


def costs(config: Any, lengths: Sequence[float], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return the cost of the unlearned model and of each retrained one, up to the first that is as good.

    Args:
      config: Config with an original model.
      lengths: Lengths of retraining, see `l2l_jax.experiment.pretrain.retrain`.
      folder: Empty folder for checkpoints.

    Returns:
      Dicts with "model"; "s" and "CPU s", wall and CPU time in seconds; and "retain error", the masked MSE on
      retain validation images relative to the original model.
    """
    from l2l_jax.data.sources import open_source
    from l2l_jax.data.splits import open_training, validation_sets
    from l2l_jax.evals.inpaint import masked_errors
    from l2l_jax.experiment.phase import training_sets
    from l2l_jax.experiment.pretrain import original_params, retrain
    from l2l_jax.experiment.unlearn import unlearned_params
    from l2l_jax.experiment.workdir import Workdir

    folders, size = Workdir(folder / "run", config), config.model.image_size
    train = open_training(config.data, size)
    original, sets = original_params(config, folders, train), training_sets(config, train)
    retained = validation_sets(config.data, open_source(config.data, "validation", size)).retain
    limit = masked_errors(config, original, retained).mean()
    params, row = _timed("unlearned", lambda: unlearned_params(config, folders, original, sets))
    row["retain error"] = float(masked_errors(config, params, retained).mean() / limit)
    rows = [row]
    for length in lengths:
        train_model = functools.partial(retrain, config, original, folder / "retrained", (length,))
        model, row = _timed(f"retrained, length {length:g}", train_model)
        rows.append({**row, "retain error": model.ratio})
        if model.ratio <= rows[0]["retain error"]:
            break
    return rows


def _timed(name: str, make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    wall, cpu = time.perf_counter(), time.process_time()
    model = make()
    return model, {"model": name, "s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu}
