"""The front of unlearning methods: every method with the same grid of settings, from one original model.

A cell is one setting of one method with one seed. Cells that are finished are not computed again. In one
process every device trains a cell of its own, and a CPU two; in several processes, and with parameters split
over devices, one cell after the other takes them all.
"""

import dataclasses
import functools
import json
import logging
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax

from l2l_jax.audit.run import Audit
from l2l_jax.audit.score import UNATTACKED
from l2l_jax.compare import front_report
from l2l_jax.compare.methods import fields_of, incompatible
from l2l_jax.config import Config
from l2l_jax.data.records import SplitName
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, evaluation_sets, validation_sets
from l2l_jax.errors import Diverged, UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.experiment import batches
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.gold_standard import check_gold_standard, gold_standard
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods.base import METHODS
from l2l_jax.models.base import Params
from l2l_jax.train.concurrent import AT_A_TIME, in_threads, threads
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import barrier, from_primary, on_primary

logger = logging.getLogger(__name__)

KINDS: tuple[SplitName, ...] = ("validation", "test")
"""Settings are chosen on the former images and quoted on the latter."""


class Setting(NamedTuple):
    """A method with the fields and options that the grid gives it."""

    method: str
    fields: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """Names it among those of its method; also its folder."""
        return "_".join(f"{name}_{value:g}" for name, value in self.fields)


class Grid(NamedTuple):
    """What every method is tried with.

    Attributes:
      methods: Keys of `METHODS`.
      budgets: Retain budgets.
      weights: Fixed weights of the forget term: alpha.
      ratios: Fixed r of the method "epsilon", which has no weight; as many as weights.
      rates: Learning rates; none: the recipe's.
      seeds: Seeds of the runs of each setting.
    """

    methods: Sequence[str]
    budgets: Sequence[float] = ()
    weights: Sequence[float] = ()
    ratios: Sequence[float] = ()
    rates: Sequence[float] = ()
    seeds: Sequence[int] = (0, 1, 2)

    def check(self) -> None:
        """Raise a UserError unless every method gets equally many settings, and at least one."""
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise UserError(f"--methods names {unknown[0]!r}; known: {', '.join(METHODS)}.")
        if not (self.budgets or self.weights) or not self.methods or not self.seeds:
            raise UserError("The grid is empty: give --methods, --seeds, and --budgets or --weights.")
        if "epsilon" in self.methods and len(self.ratios) != len(self.weights):
            raise UserError(
                f"--weights gives {len(self.weights)} values and --epsilon_ratios {len(self.ratios)}: the "
                "method epsilon is to be tried as often as the others."
            )

    def settings(self) -> Iterator[Setting]:
        """Yield all settings, method by method."""
        for method in self.methods:
            dials = [("retain_budget", budget) for budget in self.budgets]
            fixed = ("epsilon_ratio", self.ratios) if method == "epsilon" else ("alpha", self.weights)
            dials += [(fixed[0], value) for value in fixed[1]]
            for dial in dials:
                for rate in self.rates or (None,):
                    more = () if rate is None else (("learning_rate", rate),)
                    yield Setting(method, (dial, *more))


def run_front(config: Config, workdir: pathlib.Path, grid: Grid, limit: float) -> dict[str, Any]:
    """Run the cells of a grid that are not finished, and write `workdir/front`.

    Args:
      config: The experiment; all cells start from its pretrained model and take as many steps.
      workdir: Folder of the run.
      grid: The settings.
      limit: The greatest cost that counts for the area under a front, as 0.5.

    Returns:
      What front.json holds, see `front_report.summary`.

    Raises:
      UserError: An error the user can fix.
      Interrupted: The run was asked to stop; its state is saved.
    """
    grid.check()
    for method in grid.methods:
        unlearn = config.unlearn.replace(**fields_of(method))
        if reason := incompatible(dataclasses.replace(config, unlearn=unlearn)):
            raise UserError(f"The method {method} cannot be run: {reason}. Name the others with --methods.")
    runner = _Cells(config, workdir)
    settings = list(grid.settings())
    cells = [(setting, seed) for setting in settings for seed in grid.seeds]
    runner.run(cells)
    results = {cell: from_primary(functools.partial(runner.finished, *cell)) for cell in cells}
    original = from_primary(runner.original_result)

    def write() -> dict[str, Any]:
        by_setting = {s: [results[s, seed] for seed in grid.seeds] for s in settings}
        facts = {"grid": grid._asdict(), "limit": limit, "config": config.describe()}
        return front_report.write(workdir / "front", by_setting, original, facts)

    return from_primary(write)


class _Cells:
    """Trains and measures cells of one experiment."""

    def __init__(self, config: Config, workdir: pathlib.Path):
        self._config, self._folder = config, workdir / "front"
        folders = Workdir(workdir, config)
        if config.audit.enabled:
            check_gold_standard(config, self._folder / "audit")
        with barrier():
            if config.data.retain_images == "generated":
                raise UserError(
                    "compare --front trains on given images: config.data.retain_images must be 'real', "
                    "not 'generated'."
                )
            self._evaluation = Evaluation(config, folders.evaluation)
            self._sets = batches.training_sets(config, self._evaluation.train)
            self._sources = _measured_sources(config)
        self._original = original_params(config, folders, self._evaluation.train)
        self._pretrained = config.pretrained or str(folders.pretrained)
        self._auditor = None
        if config.audit.enabled:
            folder = self._folder / "audit"
            standard = gold_standard(config, self._original, folder)
            self._auditor = Audit(config, self._evaluation, self._sets, self._original, standard, folder)
        key = {kind: identify_images(**sources._asdict()) for kind, sources in self._sources.items()}
        key["inputs"] = unlearning.identify_inputs(config, self._original, self._sets)
        self._cache = ResultCache(self._folder / "cells", key)
        self._locks: dict[pathlib.Path, threading.Lock] = {}

    def run(self, cells: Sequence[tuple[Setting, int]]) -> None:
        """Train and measure the cells that are not finished."""
        self._cache.get_or_compute(
            "original", lambda: self._measured(self._original, "original"), stamp=_settings(self._config)
        )
        left = [cell for cell in cells if from_primary(functools.partial(self.finished, *cell)) is None]
        logger.info("Front: %d cells, %d of them to be computed", len(cells), len(left))
        for place, (cell, params) in enumerate(self._trained(left), 1):
            name = self._name(*cell)
            self._keep(name, self._result(params, name), self._variant(*cell))
            logger.info("Front: %s is finished, %d of %d", name, place, len(left))

    def finished(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """Return what was measured of a cell with these settings, or None."""
        return self._cache.get(self._name(setting, seed), stamp=_settings(self._variant(setting, seed)))

    def original_result(self) -> dict[str, Any]:
        """Return what was measured of the original model."""
        return self._cache.get("original")

    def _trained(
        self, cells: Sequence[tuple[Setting, int]]
    ) -> Iterator[tuple[tuple[Setting, int], Params | Diverged]]:
        """Yield cells in the order given, and their models or why there is none, as soon as each is there."""
        slots = self._slots()
        free: SimpleQueue[list[jax.Device]] = SimpleQueue()
        for slot in slots:
            free.put(slot)

        def on_free_devices(cell: tuple[Setting, int]) -> Params | Diverged:
            devices = free.get()
            try:
                return self._unlearned(*cell, devices)
            finally:
                free.put(devices)

        work = [functools.partial(on_free_devices, cell) for cell in cells]
        yield from zip(cells, in_threads(work, len(slots)), strict=True)

    def _slots(self) -> list[list[jax.Device]]:
        """Return the devices of each cell that is trained at the same time; a device may be in several."""
        devices = jax.devices()
        if jax.process_count() > 1 or self._config.mesh != MeshConfig():
            return [devices]
        return [[device] for device in devices] * threads(AT_A_TIME)

    def _unlearned(self, setting: Setting, seed: int, devices: list) -> Params | Diverged:
        variant = self._variant(setting, seed)
        folders = Workdir(self._folder / self._name(setting, seed), variant)
        try:
            phases = self._phases(setting, variant, devices)
            return unlearning.unlearned_params(
                variant, folders, self._original, self._sets, devices=devices, phases=phases
            )
        except Diverged as error:
            return error

    def _phases(self, setting: Setting, variant: Config, devices: list) -> pathlib.Path:
        """Run the phases of a cell and return their folder; cells that differ only in their dial share it."""
        rate = "_".join(f"{name}_{value:g}" for name, value in setting.fields[1:]) or "recipe"
        folder = self._folder / setting.method / "phases" / rate / f"seed_{variant.seed}"
        given = self._config.unlearn
        unlearn = dataclasses.replace(
            variant.unlearn, retain_budget=None, alpha=given.alpha, methods=given.methods
        )
        with self._locks.setdefault(folder, threading.Lock()):  # other cells wait for them
            phases = Workdir(folder, dataclasses.replace(variant, unlearn=unlearn)).unlearn
            unlearning.run_phases(variant, phases, self._original, self._sets, devices)
        return phases

    def _variant(self, setting: Setting, seed: int) -> Config:
        unlearn = self._config.unlearn.replace(
            **{"retain_budget": None, **fields_of(setting.method), **dict(setting.fields)},
        )
        return dataclasses.replace(self._config, pretrained=self._pretrained, seed=seed, unlearn=unlearn)

    def _result(self, params: Params | Diverged, name: str) -> dict[str, Any]:
        if isinstance(params, Diverged):
            return {"failed": str(params)}
        result = self._measured(params, name)
        if self._auditor is not None:
            result["depth"] = _depths(self._auditor.audit(name.replace("/", "_"), params))
        return result

    def _measured(self, params: Params, name: str) -> dict[str, Any]:
        errors = {
            kind: {
                of: masked_errors(self._config, params, source, self._evaluation.inpainter).tolist()
                for of, source in sources._asdict().items()
            }
            for kind, sources in self._sources.items()
        }
        return {"errors": errors, "figures": self._evaluation.evaluate(params, name).metrics}

    def _keep(self, name: str, result: Mapping[str, Any], config: Config) -> None:
        on_primary(lambda: self._cache.put(name, dict(result), stamp=_settings(config)))

    @staticmethod
    def _name(setting: Setting, seed: int) -> str:
        return f"{setting.method}/{setting.label}/seed_{seed}"


def _measured_sources(config: Config) -> dict[str, Split]:
    """Return the images that errors are measured on, by kind."""
    size = config.model.image_size
    choose = dict(zip(KINDS, (validation_sets, evaluation_sets), strict=True))
    return {kind: choose[kind](config.data, open_source(config.data, kind, size)) for kind in KINDS}


def _depths(audit: Mapping[str, Any]) -> dict[str, float]:
    """Return the depth of forgetting by log error after each attack for which the images suffice."""
    found = {
        result["name"]: result["depth"]["error"]
        for result in audit["results"]
        if result["name"] != UNATTACKED and "error" in result["depth"]
    }
    return {attack: depth["value"] for attack, depth in found.items() if depth["resolved"]}


def _settings(config: Config) -> dict[str, Any]:
    """Return what a cell's result depends on."""
    settings = json.loads(json.dumps(config.describe()))
    for where in ("mesh", "parallel", *(() if config.audit.enabled else ("audit",))):
        del settings[where]
    return settings
