"""Sequences of forget requests: each request starts from the unlearned model of the previous one.

Classes of earlier requests stay in the forget set, and the retain budget stays relative to the first original
model. The last row forgets all classes at once.

With `config.data.prototypes`, a request does not read images of earlier requests. It replays images of their
classes instead, generated from the class prototypes by the model before the earlier request.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from l2l_jax.compare.area import relative
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.arrays import PrototypeImages
from l2l_jax.data.config import REST
from l2l_jax.data.records import Mixture, Source
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.evals.intervals import bootstrap
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.generate import generate
from l2l_jax.experiment.phase import phase_seed, training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.models.base import Params
from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import barrier, from_primary

AT_ONCE = "all at once"


def run_sequence(config: Config, workdir: pathlib.Path, requests: Sequence[str]) -> dict[str, Any]:
    """Unlearn one class after the other, or resume; write `workdir/sequence.json` and `.md`.

    Args:
      config: Config of the experiment; its model is the first original model, and `data.forget` and
        `data.retain` are not used.
      workdir: Folder of the run, with a subfolder for each request.
      requests: Classes to forget, in order.

    Returns:
      By row ("original", the requests in order, `AT_ONCE`): the error on the test images of each requested
      class and of the remaining classes, relative to the first original model, with its interval.
    """
    if len(set(requests)) < len(requests) or len(requests) < 2:
        raise UserError(f"--sequence={','.join(requests)}: name at least two different classes.")
    everything = _forgetting(config, requests)
    with barrier():
        evaluation = Evaluation(everything, workdir / "evaluation")
        sources = _measured_sources(config, requests)
    first = original_params(config, Workdir(workdir / "first", config), evaluation.train)
    pretrained = config.pretrained or str(workdir / "first" / "pretrained")

    replayed: dict[str, Source] = {}

    def unlearned(requests: Sequence[str], folder: pathlib.Path, newest: str, params: Params) -> Params:
        variant = dataclasses.replace(_forgetting(config, requests), pretrained=newest)
        with barrier():
            sets = training_sets(variant, evaluation.train)
            if replayed:
                forget = {requests[-1]: _to_forget(config, requests[-1], evaluation.train), **replayed}
                sets = sets._replace(forget=Mixture(forget, [len(source) for source in forget.values()]))
        return unlearning.unlearned_params(variant, Workdir(folder, variant), params, sets)

    def measured(params: Params) -> dict[str, np.ndarray]:
        return {
            name: masked_errors(config, params, source, evaluation.inpainter)
            for name, source in sources.items()
        }

    before = measured(first)
    rows, params, newest = {"original": _ratios(before, before)}, first, pretrained
    for number, name in enumerate(requests, 1):
        folder, before_request = workdir / str(number), params
        params = unlearned(requests[:number], folder, newest, params)
        if config.data.prototypes and number < len(requests):
            replayed[name] = _replay(config, name, before_request, evaluation.train, folder / "replayed")
        rows[f"then {name}" if number > 1 else name] = _ratios(measured(params), before)
        newest = str(folder / "unlearned")
    replayed.clear()
    params = unlearned(requests, workdir / "at_once", pretrained, first)
    rows[AT_ONCE] = _ratios(measured(params), before)

    def write() -> dict[str, Any]:
        report = {"rows": rows, "requests": list(requests), "config": config.describe()}
        atomic_write(workdir / "sequence.json", json.dumps(report, indent=2) + "\n")
        atomic_write(workdir / "sequence.md", table(rows, "github") + "\n")
        return rows

    return from_primary(write)


def table(rows: dict[str, Any], style: str = "simple") -> str:
    """Format errors relative to the original model: a row for each request, a column for each class."""
    body = [
        [name, *("×{:.2f} [{:.2f}, {:.2f}]".format(*ratio) for ratio in ratios.values())]
        for name, ratios in rows.items()
    ]
    return tabulate(body, headers=["forgotten", *rows["original"]], tablefmt=style, disable_numparse=True)


def _forgetting(config: Config, names: Sequence[str]) -> Config:
    data = dataclasses.replace(config.data, forget=tuple(names), retain=(REST,))
    return dataclasses.replace(config, data=data)


def _to_forget(config: Config, name: str, train: Source) -> Source:
    return splits.training_sets(_forgetting(config, [name]).data, train, config.model.image_size).forget


def _replay(config: Config, name: str, params: Params, train: Source, folder: pathlib.Path) -> Source:
    """Generate images of a class from its prototypes by a model, as many as there are images to forget."""
    with barrier():
        count = len(_to_forget(config, name, train))
        starts = PrototypeImages(config.data.prototypes, [name], count, seed=config.seed)
    images = ImageSet(config, starts, "prototypes to replay")
    size, seed = config.evaluate.batch_size, phase_seed(config.seed, 2001)
    return generate(config.model, params, images, folder, batch_size=size, seed=seed)


def _measured_sources(config: Config, requests: Sequence[str]) -> dict[str, Source]:
    """Return the test images of each requested class and of the remaining classes."""
    test = open_source(config.data, "test", config.model.image_size)
    sources: dict[str, Source] = {
        f"error on {name}": evaluation_sets(_forgetting(config, [name]).data, test).forget
        for name in requests
    }
    return sources | {"error on the rest": evaluation_sets(_forgetting(config, requests).data, test).retain}


def _ratios(after: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {
        name: list(bootstrap(functools.partial(relative, [after[name]], errors), len(errors)))
        for name, errors in before.items()
    }
