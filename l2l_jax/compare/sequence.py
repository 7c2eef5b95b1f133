"""Requests after one another: each starts from the model that the one before left.

What was forgotten before stays in the set to forget, and the retain budget stays relative to the first
original model. Beside the requests stands one that forgets everything at once.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from l2l_jax.config import Config
from l2l_jax.data.config import REST
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.evals.intervals import bootstrap
from l2l_jax.experiment import batches
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.models.base import Params
from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import barrier, from_primary

AT_ONCE = "all at once"


def run_sequence(config: Config, workdir: pathlib.Path, requests: Sequence[str]) -> dict[str, Any]:
    """Unlearn one class after the other, or continue to; write `workdir/sequence.json` and `.md`.

    Args:
      config: The experiment; its model is the first original, `data.forget` and `data.retain` are not used.
      workdir: Folder of the run, with a folder for each request.
      requests: Classes in the order in which they are forgotten.

    Returns:
      By row ("original", the requests in their order, `AT_ONCE`): the error on test images of each class
      requested, and of the classes never requested, relative to the first original's, with its interval.

    Raises:
      UserError: An error the user can fix.
      Interrupted: The run was asked to stop; its state is saved.
    """
    if len(set(requests)) < len(requests) or len(requests) < 2:
        raise UserError(f"--sequence={','.join(requests)}: name at least two different classes.")
    everything = _with(config, forget=tuple(requests))
    with barrier():
        evaluation = Evaluation(everything, workdir / "evaluation")
        sources = _measured_sources(config, requests)
    first = original_params(config, Workdir(workdir / "first", config), evaluation.train)
    before = _errors(config, first, sources, evaluation)
    pretrained = config.pretrained or str(workdir / "first" / "pretrained")
    rows, params, newest = {"original": _ratios(before, before)}, first, pretrained
    for number, name in enumerate(requests, 1):
        variant = _with(config, forget=tuple(requests[:number]), pretrained=newest)
        params = _unlearned(variant, workdir / str(number), params, evaluation)
        rows[f"then {name}" if number > 1 else name] = _ratios(
            _errors(config, params, sources, evaluation), before
        )
        newest = str(workdir / str(number) / "unlearned")
    variant = dataclasses.replace(everything, pretrained=pretrained)
    params = _unlearned(variant, workdir / "at_once", first, evaluation)
    rows[AT_ONCE] = _ratios(_errors(config, params, sources, evaluation), before)

    def write() -> dict[str, Any]:
        report = {"rows": rows, "requests": list(requests), "config": config.describe()}
        atomic_write(workdir / "sequence.json", json.dumps(report, indent=2) + "\n")
        atomic_write(workdir / "sequence.md", table(rows, "github") + "\n")
        return rows

    return from_primary(write)


def table(rows: dict[str, Any], style: str = "simple") -> str:
    """Format errors relative to the original's: a row for each request, a column for each class."""
    columns = list(rows["original"])
    body = [
        [name, *("×{:.2f} [{:.2f}, {:.2f}]".format(*row[column]) for column in columns)]
        for name, row in rows.items()
    ]
    return tabulate(body, headers=["forgotten", *columns], tablefmt=style, disable_numparse=True)


def _with(config: Config, *, forget: tuple, pretrained: str | None = None) -> Config:
    data = dataclasses.replace(config.data, forget=forget, retain=(REST,))
    return dataclasses.replace(
        config, data=data, pretrained=config.pretrained if pretrained is None else pretrained
    )


def _unlearned(config: Config, folder: pathlib.Path, params: Params, evaluation: Evaluation) -> Params:
    with barrier():
        sets = batches.training_sets(config, evaluation.train)
    return unlearning.unlearned_params(config, Workdir(folder, config), params, sets)


def _measured_sources(config: Config, requests: Sequence[str]) -> dict[str, Source]:
    """Test images of each class requested, and of the classes never requested, as "retain"."""
    test = open_source(config.data, "test", config.model.image_size)
    sources: dict[str, Source] = {
        f"error on {name}": evaluation_sets(_with(config, forget=(name,)).data, test).forget
        for name in requests
    }
    never = evaluation_sets(_with(config, forget=tuple(requests)).data, test).retain
    return {**sources, "error on the rest": never}


def _errors(
    config: Config, params: Params, sources: dict[str, Source], evaluation: Evaluation
) -> dict[str, np.ndarray]:
    return {name: masked_errors(config, params, x, evaluation.inpainter) for name, x in sources.items()}


def _ratios(after: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> dict[str, list[float]]:
    def ratio(name):
        now, then = after[name], before[name]
        return list(bootstrap(lambda i: now[i].mean(-1) / then[i].mean(-1), len(now)))

    return {name: ratio(name) for name in before}
