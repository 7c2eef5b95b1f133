"""Audits: the same attacks on unlearned, original and retrained models."""

import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from l2l_jax.audit import knowledge
from l2l_jax.audit.attacks.base import ATTACKS, Attack, Findings, Points, Work, mean_points
from l2l_jax.audit.bench import AuditSetup, Bench, Target
from l2l_jax.audit.config import THOROUGH
from l2l_jax.audit.score import UNATTACKED, Line, conclude
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.models.base import Params
from l2l_jax.train.concurrent import side_by_side
from l2l_jax.utils.io import ResultCache, atomic_write, tree_hash
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)
RECOMPUTED = ("remat", "scan")  # model fields that affect performance but not results


class Standard(NamedTuple):
    """Models retrained without the forget images: the gold standard."""

    models: Mapping[str, Params]  # parameters by name: "retrained", "retrained_2", …
    facts: dict[str, Any]  # JSON-serializable: "origin", "ratio", "images", "fair", "seeds"


class Audit:
    """Attacks on models unlearned from one original model; results are stored in a folder for each model.

    Args:
      config: Config of the experiment.
      evaluation: Its test images.
      training: Images used for unlearning.
      folder: Folder of all audits of this original model.

    Raises:
      UserError: An attack needs more images than available, or the experiment cannot be audited.

    Attributes:
      lines: Variants of all attacks, the unattacked model first.
    """

    def __init__(self, config: AuditSetup, evaluation: Evaluation, training: Split, folder: pathlib.Path):
        self._config, self._folder = config, folder
        self._standard: Standard | None = None
        self._others: dict[str, Params] = {}
        self._references: dict[str, Findings] = {}
        self._attacks: dict[str, Attack] = {}
        self._caches: dict[str, ResultCache] = {}
        self.lines = [Line(UNATTACKED, "no attack")]
        with barrier():
            self._bench = Bench(config, evaluation, training)
            for attack in self._chosen():
                attack.check(self._bench)
                for variant, title in attack.variants(self._bench).items():
                    self._attacks[variant] = attack
                    self.lines.append(Line(variant, title, attack.is_curve))

    def compare_with(self, original: Params, standard: Standard | None) -> None:
        """Set the original model and the retrained models, if any, before `audit`."""
        self._standard = standard
        self._others = {"original": original, **(standard.models if standard else {})}

    def work(self) -> list[Work]:
        """Return the work of every attack on one model."""
        attacks = dict.fromkeys(self._attacks.values())
        return [attack.work(self._bench) for attack in attacks for _ in range(self._repeats(attack))]

    def _repeats(self, attack: Attack | None) -> int:
        return self._config.audit.seeds if attack and attack.is_seeded else 1

    def _chosen(self) -> list[Attack]:
        """Return the configured attacks; for "thorough", all attacks that the model supports."""
        thorough = self._config.audit.attacks == (THOROUGH,)
        chosen = []
        for name in ATTACKS if thorough else self._config.audit.attacks:
            attack = getattr(self._config.audit, name)
            why = attack.why_not(self._bench)
            if not why:
                chosen.append(attack)
            elif thorough:
                logger.info("The attack %s is left out: %s.", name, why)
            else:
                raise UserError(f"config.audit.attacks names {name}, which cannot be run: {why}.")
        return chosen

    def audit(self, name: str, params: Params) -> dict[str, Any]:
        """Audit an unlearned model and write the result, see `score.conclude`, to `<folder>/<name>.json`."""
        start = time.monotonic()
        others = {} if self._references else self._others  # attacked along with the first unlearned model
        results = self.run({name: params, **others}, show=name)
        own = results.pop(name)
        self._references |= results
        retrained = [findings for role, findings in self._references.items() if role != "original"]
        roles = {"original": [self._references["original"]], "unlearned": [own], "retrained": retrained}

        def write() -> dict[str, Any]:
            report = conclude(roles, self.lines, self._standard and self._standard.facts)
            report["seconds"] = round(time.monotonic() - start, 2)
            atomic_write(self._folder / f"{name}.json", json.dumps(report, indent=2) + "\n")
            return report

        return from_primary(write)

    def run(self, models: Mapping[str, Params], show: str = "") -> dict[str, Findings]:
        """Run all attacks on models by name, or load their cached results; the same in every process.

        Example reconstructions of the model `show` are stored.

        Raises:
          Interrupted: The run was asked to stop; finished attacks are stored, and long training runs resume.
        """
        if self._config.audit.attacks == (THOROUGH,):
            seconds = len(models) * self._bench.seconds(next(iter(models.values())), self.work())
            text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
            message = "The thorough audit of %d models takes about %s; finished attacks are not repeated."
            logger.info(message, len(models), text)
        targets = [Target(name, x, self._cache(name, x), name == show) for name, x in models.items()]
        jobs = [
            (target, line, seed)
            for target in targets
            for line in self.lines
            for seed in range(self._repeats(self._attacks.get(line.name)))
        ]
        attacks = sum(line.name in self._attacks for _, line, _ in jobs)
        with Progress("audit", attacks, unit="attack") as progress:

            def counted(job: tuple[Target, Line, int]) -> Points:
                points = self._findings(*job)
                progress.update(job[1].name in self._attacks)
                return points

            results = side_by_side([functools.partial(counted, job) for job in jobs])
        repeats: dict[str, dict[str, list[Points]]] = {name: {} for name in models}
        for (target, line, _), points in zip(jobs, results, strict=True):
            repeats[target.name].setdefault(line.name, []).append(points)
        return {name: {v: mean_points(runs) for v, runs in own.items()} for name, own in repeats.items()}

    def pictures(self, name: str, report: Mapping[str, Any]) -> Mapping[str, np.ndarray] | None:
        """Return reconstructions after the strongest training attack, at its best step, by set."""
        attack = report["shown_attack"]
        if attack is None:
            return None
        cache = self._caches[name]
        points = unflatten_dict(cache.get(f"{attack}/seed_0", wait=True), sep="/")
        step = min(points, key=lambda point: points[point]["validation"]["error"].mean())
        return cache.get(f"{attack}/pictures_{step}", wait=True)

    def _findings(self, target: Target, line: Line, seed: int) -> Points:
        attack = self._attacks.get(line.name)

        def compute() -> dict[str, np.ndarray]:
            if attack is not None:
                points = attack.run(line.name, self._bench, target, seed)
            else:
                sets = ("retain", "forget", "validation")
                points = {"0": self._bench.measure(target.params, f"{target.name}, {line.title}", sets)}
            return flatten_dict(points, sep="/")

        options = None if attack is None else dataclasses.asdict(attack)
        stamp = {"options": options, "title": line.title}
        arrays = target.cache.get_or_compute(f"{line.name}/seed_{seed}", compute, stamp=stamp)
        return unflatten_dict(arrays, sep="/")

    def _cache(self, name: str, params: Params) -> ResultCache:
        facts = self._config.describe("model", "data", "evaluate", "seed")
        for field in RECOMPUTED:
            facts["model"].pop(field, None)
        facts["knowledge"] = knowledge.VERSION
        del facts["data"]["canaries"]  # redundant: other canaries yield another original model
        self._caches[name] = ResultCache(self._folder / name, {"parameters": tree_hash(params), **facts})
        return self._caches[name]
