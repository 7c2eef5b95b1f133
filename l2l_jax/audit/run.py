"""Audits: the same attacks on the unlearned, the original and the retrained models."""

import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.audit.attacks.base import Attack
from l2l_jax.audit.bench import AuditSetup, Bench, Target
from l2l_jax.audit.points import Findings, Points, from_arrays, mean, to_arrays
from l2l_jax.audit.score import UNATTACKED, Line, conclude
from l2l_jax.data.splits import Split
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.models.base import Params
from l2l_jax.train.concurrent import side_by_side
from l2l_jax.utils.io import ResultCache, atomic_write, tree_hash
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)

RECOMPUTED = ("remat", "scan")
"""Fields of a model that change how it is computed, not what."""


class Standard(NamedTuple):
    """Models that never saw the forget images: the gold standard.

    Attributes:
      models: Parameters by name: "retrained", "retrained_2", …
      facts: JSON-able: "origin", "ratio", "images", "fair", "seeds".
    """

    models: Mapping[str, Params]
    facts: dict[str, Any]


class Audit:
    """Audits of unlearned models that come from one original; what they share is done once.

    Args:
      config: The experiment.
      evaluation: Its test images.
      training: The images that unlearning was given.
      original: The original model.
      standard: The retrained models; None: there are none.
      folder: Folder of all audits of this original.

    Raises:
      UserError: An attack needs more images than there are, or the experiment cannot be audited.
    """

    def __init__(
        self,
        config: AuditSetup,
        evaluation: Evaluation,
        training: Split,
        original: Params,
        standard: Standard | None,
        folder: pathlib.Path,
    ):
        with barrier():
            self._runner = AttackRunner(config, evaluation, training, folder)
        self._folder, self._original, self._standard = folder, original, standard
        self._references: dict[str, Findings] = {}

    def audit(self, name: str, params: Params) -> dict[str, Any]:
        """Audit an unlearned model and write the result, see `score.conclude`, to `<folder>/<name>.json`.

        Args:
          name: Name of the model and its folder.
          params: Its parameters, which are not changed.
        """
        start = time.monotonic()
        models = {name: params}
        if not self._references:  # now, side by side with the first unlearned model
            models |= {"original": self._original, **(self._standard.models if self._standard else {})}
        findings = self._runner.run(models, show=name)
        own = findings.pop(name)
        self._references |= findings
        roles = {
            "original": [self._references["original"]],
            "unlearned": [own],
            "retrained": [found for name, found in self._references.items() if name != "original"],
        }
        facts = None if self._standard is None else self._standard.facts
        report = from_primary(lambda: conclude(roles, self._runner.lines, facts))
        report["seconds"] = round(time.monotonic() - start, 2)
        on_primary(lambda: atomic_write(self._folder / f"{name}.json", json.dumps(report, indent=2) + "\n"))
        return report

    def pictures(self, name: str, report: Mapping[str, Any]) -> Mapping[str, np.ndarray] | None:
        """Return reconstructions of the shown images after the strongest training attack, by set."""
        attack = report["shown_attack"]
        return None if attack is None else self._runner.pictures(name, attack)


class AttackRunner:
    """Runs attacks on models and keeps what they find on disk.

    Args:
      config: The experiment.
      evaluation: Its test images.
      training: The images that unlearning was given.
      folder: Keeps a folder for each model.

    Attributes:
      lines: The variants of all attacks, the unattacked model first.
    """

    def __init__(self, config: AuditSetup, evaluation: Evaluation, training: Split, folder: pathlib.Path):
        self._bench, self._config, self._folder = Bench(config, evaluation, training), config, folder
        self._attacks: dict[str, Attack] = {}
        self.lines = [Line(UNATTACKED, "no attack")]
        for attack_name in config.audit.attacks:
            attack = config.audit.attack(attack_name)
            attack.check(self._bench)
            for variant, title in attack.variants(self._bench).items():
                self._attacks[variant] = attack
                self.lines.append(Line(variant, title, attack.is_curve))
        self._caches: dict[str, ResultCache] = {}

    def run(self, models: Mapping[str, Params], show: str = "") -> dict[str, Findings]:
        """Run all attacks on models, or read what they found before; the same in every process.

        Args:
          models: Parameters by name.
          show: The model of which pictures are kept.

        Raises:
          Interrupted: Asked to stop; finished attacks are kept, and long trainings resume.
        """
        work: dict[tuple[str, str, int], Callable[[], Points]] = {}
        for name, params in models.items():
            target = Target(name, params, self._cache(name, params), name == show)
            for line in self.lines:
                for seed in range(self._repetitions(line)):
                    work[name, line.name, seed] = self._job(target, line, seed)
        with Progress("audit", len(work), unit="attack") as progress:

            def counted(job: Callable[[], Points]) -> Points:
                points = job()
                progress.update()
                return points

            jobs = [functools.partial(counted, job) for job in work.values()]
            results = dict(zip(work, side_by_side(jobs), strict=True))
        found: dict[str, dict[str, list[Points]]] = {name: {} for name in models}
        for (name, variant, _), points in results.items():
            found[name].setdefault(variant, []).append(points)
        return {name: {v: mean(runs) for v, runs in variants.items()} for name, variants in found.items()}

    def pictures(self, name: str, variant: str) -> Mapping[str, np.ndarray] | None:
        """Return reconstructions at the attacked step that fits validation images best, by set."""
        cache = self._caches[name]
        points = from_arrays(cache.get(f"{variant}/seed_0", wait=True))
        step = min(points, key=lambda point: points[point]["validation"]["mse"].mean())
        return cache.get(f"{variant}/pictures_{step}", wait=True)

    def _repetitions(self, line: Line) -> int:
        attack = self._attacks.get(line.name)
        return self._config.audit.seeds if attack is not None and attack.is_seeded else 1

    def _job(self, target: Target, line: Line, seed: int) -> Callable[[], Points]:
        attack = self._attacks.get(line.name)

        def compute() -> dict[str, np.ndarray]:
            if attack is not None:
                return to_arrays(attack.run(line.name, self._bench, target, seed))
            sets = ("retain", "forget", "validation")
            return to_arrays({"0": self._bench.measure(target.params, f"{target.name}, {line.title}", sets)})

        def job() -> Points:
            options = None if attack is None else dataclasses.asdict(attack)
            stamp = {"options": options, "title": line.title}
            return from_arrays(target.cache.get_or_compute(f"{line.name}/seed_{seed}", compute, stamp=stamp))

        return job

    def _cache(self, name: str, params: Params) -> ResultCache:
        facts = self._config.describe("model", "data", "evaluate", "seed")
        for field in RECOMPUTED:
            facts["model"].pop(field, None)
        self._caches[name] = ResultCache(self._folder / name, {"parameters": tree_hash(params), **facts})
        return self._caches[name]
