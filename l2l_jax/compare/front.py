"""Pareto fronts of unlearning methods: every method on the same grid of settings, from one original model.

A cell is one setting of one method with one seed. Finished cells are not computed again. In a single process,
every device trains a cell of its own, and a CPU trains two. With several processes, or with parameters
sharded over devices, cells run one after the other on all devices.
"""

import dataclasses
import functools
import itertools
import logging
import pathlib
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax

from l2l_jax.compare import front_report
from l2l_jax.compare.setup import Setup, fields_of, incompatible, stamp
from l2l_jax.config import Config
from l2l_jax.data.records import SplitName
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, validation_sets
from l2l_jax.errors import Diverged, UserError
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods.base import METHODS
from l2l_jax.models.base import Params
from l2l_jax.train.concurrent import AT_A_TIME, in_threads, threads
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import barrier, from_primary

logger = logging.getLogger(__name__)
# Settings are chosen on validation images and reported on test images
KINDS: tuple[SplitName, ...] = ("validation", "test")


class Setting(NamedTuple):
    """A method with its fields from the grid: a dial (budget or weight) and optionally a learning rate."""

    method: str
    fields: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """Return the setting's name within its method, which is also its folder."""
        return "_".join(f"{name}_{value:g}" for name, value in self.fields)


class Cell(NamedTuple):
    """A setting with a seed."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the cell's folder and cache entry."""
        return f"{self.setting.method}/{self.setting.label}/seed_{self.seed}"


class Grid(NamedTuple):
    """Settings for every method: retain budgets or fixed weights of the forget term.

    Attributes:
      methods: Names of methods.
      budgets: Retain budgets.
      weights: Fixed weights of the forget term.
      ratios: Fixed ratios r of the method "epsilon", which has no weight; as many as there are weights.
      rates: Learning rates; empty for that of the config.
      seeds: Seeds of the runs of each setting.
    """

    methods: Sequence[str]
    budgets: Sequence[float] = ()
    weights: Sequence[float] = ()
    ratios: Sequence[float] = ()
    rates: Sequence[float] = ()
    seeds: Sequence[int] = (0, 1, 2)

    def check(self) -> None:
        """Raise a UserError unless all methods have the same number of settings, at least one."""
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise UserError(f"--methods names {unknown[0]!r}; known: {', '.join(METHODS)}.")
        if not (self.budgets or self.weights) or not self.methods or not self.seeds:
            raise UserError("The grid is empty: give --methods, --seeds, and --budgets or --weights.")
        if "epsilon" in self.methods and len(self.ratios) != len(self.weights):
            raise UserError(
                f"--weights gives {len(self.weights)} values and --epsilon_ratios {len(self.ratios)}: give "
                "equally many, since the method epsilon uses ratios instead of weights."
            )

    def settings(self) -> Iterator[Setting]:
        """Yield all settings, method by method."""
        rates = [[("learning_rate", rate)] for rate in self.rates] or [[]]
        for method in self.methods:
            weights = self.ratios if method == "epsilon" else self.weights
            dials = [("retain_budget", budget) for budget in self.budgets]
            dials += [(METHODS[method].weight_option, weight) for weight in weights]
            for dial, rate in itertools.product(dials, rates):
                yield Setting(method, (dial, *rate))


def run_front(config: Config, workdir: pathlib.Path, grid: Grid, limit: float) -> dict[str, Any]:
    """Run the unfinished cells of a grid; write and return `workdir/front/front.json`.

    Args:
      config: Config of the experiment; all cells start from its pretrained model and take the same number of
        steps.
      workdir: Folder of the run.
      grid: Settings.
      limit: Greatest cost included in the area under a front, such as 0.5.
    """
    with barrier():
        grid.check()
        for method in grid.methods:
            unlearn = config.unlearn.replace(**fields_of(method))
            if reason := incompatible(dataclasses.replace(config, unlearn=unlearn)):
                raise UserError(f"The method {method} cannot be run: {reason}. Name others with --methods.")
        if config.data.retain_images == "generated":
            raise UserError(
                "compare --front trains on given images: config.data.retain_images must be 'real', "
                "not 'generated'."
            )
    runner, settings = _Cells(config, workdir), list(grid.settings())
    runner.run([Cell(setting, seed) for setting in settings for seed in grid.seeds])

    def write() -> dict[str, Any]:
        results = {s: [runner.result(Cell(s, seed)) for seed in grid.seeds] for s in settings}
        facts = {"grid": grid._asdict(), "limit": limit, "config": config.describe()}
        return front_report.write(workdir / "front", results, runner.cache.get("original"), facts)

    return from_primary(write)


class _Cells:
    def __init__(self, config: Config, workdir: pathlib.Path):
        self._config, self._folder = config, workdir / "front"
        self._setup = Setup(config, workdir, self._folder / "audit")
        data, size = config.data, config.model.image_size
        with barrier():
            choose = dict(zip(KINDS, (validation_sets, evaluation_sets), strict=True))
            self._sources = {kind: choose[kind](data, open_source(data, kind, size)) for kind in KINDS}
        self._setup.start()
        key = {kind: identify_images(**sources._asdict()) for kind, sources in self._sources.items()}
        self.cache = ResultCache(self._folder / "cells", key | {"inputs": self._setup.inputs()})
        self._locks: dict[pathlib.Path, threading.Lock] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        """Train and measure the unfinished cells."""
        original = functools.partial(self._measure, self._setup.original, "original")
        self.cache.get_or_compute("original", original, stamp=self._stamp(self._config))
        left = from_primary(lambda: [index for index, cell in enumerate(cells) if self.result(cell) is None])
        logger.info("Front: %d cells, %d of them to be computed", len(cells), len(left))
        for number, (cell, params) in enumerate(self._trained([cells[index] for index in left]), 1):
            result = self._result(cell, params)
            self.cache.put_shared(cell.name, result, stamp=self._stamp(self._variant(cell)))
            logger.info("Front: %s is finished, %d of %d", cell.name, number, len(left))

    def result(self, cell: Cell) -> Any:
        """Return the stored measurements of a cell with these settings, or None."""
        return self.cache.get(cell.name, stamp=self._stamp(self._variant(cell)))

    def _stamp(self, config: Config) -> dict[str, Any]:
        return stamp(config, audited=self._config.audit.enabled)

    def _trained(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Params | Diverged]]:
        """Yield each cell, in the given order, with its model or the error, as soon as it is available."""
        devices = jax.devices()
        slots = [[device] for device in devices] * threads(AT_A_TIME)  # a device may be in several slots
        if jax.process_count() > 1 or self._config.mesh != MeshConfig():
            slots = [devices]
        free: SimpleQueue[list[jax.Device]] = SimpleQueue()
        for slot in slots:
            free.put(slot)

        def on_free_devices(cell: Cell) -> Params | Diverged:
            devices = free.get()
            try:
                return self._unlearned(cell, devices)
            except Diverged as error:
                return error
            finally:
                free.put(devices)

        work = [functools.partial(on_free_devices, cell) for cell in cells]
        yield from zip(cells, in_threads(work, len(slots)), strict=True)

    def _unlearned(self, cell: Cell, devices: list[jax.Device]) -> Params:
        variant, setup = self._variant(cell), self._setup
        # Cells that differ only in their dial share the phases before unlearning; the name is of old runs.
        rate = "_".join(f"{name}_{value:g}" for name, value in cell.setting.fields[1:]) or "recipe"
        folder = self._folder / cell.setting.method / "phases" / rate / f"seed_{cell.seed}"
        given = self._config.unlearn
        unlearn = dataclasses.replace(
            variant.unlearn, retain_budget=None, alpha=given.alpha, methods=given.methods
        )
        with self._locks.setdefault(folder, threading.Lock()):  # other cells wait for the phases
            phases = Workdir(folder, dataclasses.replace(variant, unlearn=unlearn)).unlearn
            unlearning.run_phases(variant, phases, setup.original, setup.sets, devices)
        workdir = Workdir(self._folder / cell.name, variant)
        return unlearning.unlearned_params(
            variant, workdir, setup.original, setup.sets, devices=devices, phases=phases
        )

    def _variant(self, cell: Cell) -> Config:
        fields = {"retain_budget": None, **fields_of(cell.setting.method), **dict(cell.setting.fields)}
        unlearn = self._config.unlearn.replace(**fields)
        pretrained = self._setup.pretrained
        return dataclasses.replace(self._config, pretrained=pretrained, seed=cell.seed, unlearn=unlearn)

    def _result(self, cell: Cell, params: Params | Diverged) -> dict[str, Any]:
        if isinstance(params, Diverged):
            return {"failed": str(params)}
        result = self._measure(params, cell.name)
        if audit := self._setup.audit(cell.name.replace("/", "_"), params):
            depths = {row["name"]: row["depth"].get("error") for row in audit["results"][1:]}
            result["depth"] = {name: x["value"] for name, x in depths.items() if x and x["resolved"]}
        return result

    def _measure(self, params: Params, name: str) -> dict[str, Any]:
        evaluation, errors = self._setup.evaluation, dict[str, Any]()
        for kind, sources in self._sources.items():
            errors[kind] = {
                split: masked_errors(self._config, params, source, evaluation.inpainter).tolist()
                for split, source in sources._asdict().items()
            }
        return {"errors": errors, "figures": evaluation.evaluate(params, name).metrics}
