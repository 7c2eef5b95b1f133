"""All attacks on all models, kept on disk as they finish."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax.audit.attacks import linear_probe, views
from l2l_jax.audit.attacks.membership import membership
from l2l_jax.audit.attacks.training import TrainingAttack, training_attacks
from l2l_jax.audit.measuring import Measured, Meter, Points, load_points, save_points
from l2l_jax.config import Config
from l2l_jax.data.loader import LoaderOptions, TrainingBatches, training_batches
from l2l_jax.data.records import evenly_spaced
from l2l_jax.data.splits import Split
from l2l_jax.data.transforms import Transform
from l2l_jax.evals.encoder_features import EncoderFeatures
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.concurrent import side_by_side
from l2l_jax.train.hooks import Observe
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.utils.multihost import barrier, from_primary, on_primary

logger = logging.getLogger(__name__)

UNTOUCHED = "as_it_lies"
"""The name of what is measured before any attack."""

POINTS, SHOWN, SETTINGS = "points.npz", "shown.npz", "settings.json"

Findings = dict[str, Points]
"""Points by attack, the mean over seeds where there are several."""


class Examiner:
    """Attacks models of one configuration; what attacks have in common is compiled once.

    Args:
      config: what is audited, and how.
      evaluation: the test images and what reads classes.
      training: the images that unlearning was given: what an attacker may have.
      folder: keeps a folder for each model, and in it one for each attack and seed.
    """

    def __init__(self, config: Config, evaluation: Evaluation, training: Split, folder: pathlib.Path):
        self._config, self._training, self._folder = config, training, folder
        self._meter = Meter(config, evaluation)
        with barrier():
            self._attacks = training_attacks(config.model, config.audit)
            for attack in self._attacks.values():
                attack.images.source(training, config.seed)  # complains now of what is wrong
        self._trainers: dict[Any, Trainer] = {}
        self._lock = threading.Lock()  # attacks may run side by side
        batch_size, seed = config.evaluate.batch_size, config.seed
        self._features = EncoderFeatures(config.model, batch_size, seed)
        self._viewer: views.Viewer | None = None

    def examine(self, models: Mapping[str, Params], show: str = "") -> dict[str, Findings]:
        """Run all attacks on models, or read what they found before; the same in every process.

        Args:
          models: by name of their folder, which messages show, too; they are not changed.
          show: the model of which to keep restorations of the images that pictures show, see `shown`.

        Returns:
          Findings by model.

        Raises:
          Interrupted: asked to stop; finished attacks are kept, and long trainings resume.
        """
        work: dict[tuple[str, str, int], Callable[[], Points]] = {}
        for name, params in models.items():
            model = _Model(name, params, self._folder / name, self._facts(params), name == show)
            work[name, UNTOUCHED, 0] = functools.partial(
                self._kept, model, UNTOUCHED, {}, lambda _, model=model: {"0": self._tests(model)}
            )
            for attack in self._attacks.values():
                for seed in range(self._config.audit.seeds):
                    work[name, attack.name, seed] = functools.partial(self._train, model, attack, seed)
            for attack_name, run in self._others().items():
                work[name, attack_name, 0] = functools.partial(
                    self._kept, model, attack_name, {}, lambda _, run=run, model=model: run(model)
                )
        points = dict(zip(work, side_by_side(list(work.values())), strict=True))
        found: dict[str, dict[str, list[Points]]] = {name: {} for name in models}
        for (name, attack_name, _), of_seed in points.items():
            found[name].setdefault(attack_name, []).append(of_seed)
        return {name: {a: mean(runs) for a, runs in attacks.items()} for name, attacks in found.items()}

    def shown(self, name: str, attack: str) -> Mapping[str, np.ndarray]:
        """Restorations after an attack (of its first seed) of the images that pictures show, by set."""
        with np.load(self._attack_folder(self._folder / name, attack, 0) / SHOWN) as arrays:
            return dict(arrays)

    def _others(self) -> dict[str, Callable[["_Model"], Points]]:
        """The attacks that train no model."""
        known = {
            "membership": lambda m: {"0": membership(self._meter, m.params, self._training.forget, m.name)},
            "linear_probe": self._probe,
            "views": self._view,
        }
        return {name: run for name, run in known.items() if name in self._config.audit.attacks}

    def _facts(self, params: Params) -> dict[str, Any]:
        """What all results of a model depend on."""
        facts = self._config.describe("family", "model", "data", "evaluate", "seed")
        for name in ("remat", "scan"):
            facts["model"].pop(name, None)
        return json.loads(json.dumps({"parameters": fingerprint(params), **facts}))

    def _tests(self, model: "_Model") -> Measured:
        return self._meter.tests(model.params, f"{model.name} before any attack")

    def _kept(
        self, model: "_Model", attack: str, settings: Mapping[str, Any],
        compute: Callable[[pathlib.Path], Points], seed: int = 0,
    ) -> Points:  # fmt: skip
        """What an attack found: from its folder, or computed now and kept there."""
        folder = self._attack_folder(model.folder, attack, seed)
        if from_primary(lambda: _finished(folder, {**model.facts, "attack": {**settings, "seed": seed}})):
            with barrier():
                return load_points(folder / POINTS)
        points = compute(folder)
        on_primary(lambda: save_points(folder / POINTS, points))
        return points

    @staticmethod
    def _attack_folder(folder: pathlib.Path, attack: str, seed: int) -> pathlib.Path:
        return folder / attack / f"seed_{seed}"

    def _train(self, model: "_Model", attack: TrainingAttack, seed: int) -> Points:
        """A training attack, measured on the way; it resumes where it was stopped."""
        settings = {
            "training": dataclasses.asdict(attack.training), "images": attack.images._asdict(),
            "looked_at": attack.looked_at,
        }  # fmt: skip
        settings["training"].pop("log_every")
        settings["training"].pop("checkpoint_every")
        return self._kept(
            model, attack.name, settings, lambda folder: self._train_now(model, attack, seed, folder), seed
        )

    def _train_now(self, model, attack, seed, folder) -> Points:
        title = f"{model.name}, {attack.name}"
        points: Points = {}

        def look(step: int, params: Params) -> None:
            points[str(step)] = self._meter.tests(params, f"{title} {step}")
            on_primary(lambda: save_points(folder / f"step_{step}.npz", {str(step): points[str(step)]}))
            if model.show and seed == 0 and step == attack.looked_at[-1]:
                shown = self._meter.shown(params)
                on_primary(lambda: np.savez_compressed(folder / SHOWN, **shown))

        batches = self._batches(attack, seed, folder)
        run = TrainRun(model.params, batches, folder / "training", name=title)
        self._trainer(attack, seed).train(run, [Observe(attack.looked_at, look)])
        with barrier():
            for step in attack.looked_at:
                if str(step) not in points:  # it was before the checkpoint that the attack went on from
                    points |= load_points(folder / f"step_{step}.npz")
        on_primary(lambda: _tidy(folder))
        return {str(step): points[str(step)] for step in attack.looked_at}

    def _trainer(self, attack: TrainingAttack, seed: int) -> Trainer:
        key = (attack.task.trained, attack.training, seed)  # attacks that differ in images alone share one
        with self._lock:
            if key not in self._trainers:
                self._trainers[key] = Trainer(
                    attack.name, attack.task, attack.training, seed=_seed(self._config.seed, seed, 1),
                    mesh=sharding.make_mesh(config=self._config.mesh), parallel=self._config.parallel,
                )  # fmt: skip
            return self._trainers[key]

    def _batches(self, attack: TrainingAttack, seed: int, folder: pathlib.Path) -> TrainingBatches:
        data, model = self._config.data, self._config.model
        seed = _seed(self._config.seed, seed, 2)
        return training_batches(
            {"train": attack.images.source(self._training, seed)}, attack.training.batch_size,
            value_range=model.value_range, seed=seed,
            transforms={"train": Transform(data, model.image_size, training=True)},
            options=LoaderOptions(
                folder, data.max_bad_fraction, data.workers, jax.process_index(), jax.process_count()
            ),
        )  # fmt: skip

    def _probe(self, model: "_Model") -> Points:
        train = evenly_spaced(self._training.forget, linear_probe.PROBED)
        train = self._meter.image_set(train, "forget training")
        return linear_probe.linear_probe(self._features, model.params, train, self._meter.forget)

    def _view(self, model: "_Model") -> Points:
        with self._lock:
            if self._viewer is None:
                config = self._config
                self._viewer = views.Viewer(
                    config.model, self._meter.mask, config.audit.pixel_change,
                    batch_size=config.evaluate.batch_size, seed=config.seed,
                )  # fmt: skip
        return self._viewer(model.params, self._meter.forget, self._meter.right)


@dataclasses.dataclass(frozen=True)
class _Model:
    name: str
    params: Params
    folder: pathlib.Path
    facts: Mapping[str, Any]
    show: bool


def fingerprint(params: Params) -> str:
    """SHA-256 of all parameters: equal models, and only these, share results."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(value)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def mean(runs: list[Points]) -> Points:
    """The mean of every measured number over runs of one attack."""
    return jax.tree.map(lambda *values: np.mean(values, axis=0), *runs) if len(runs) > 1 else runs[0]


def _finished(folder: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether the attack was finished with these settings; what others left there is deleted."""
    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    if path.exists() and json.loads(path.read_text()) != settings:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    return (folder / POINTS).exists()


def _tidy(folder: pathlib.Path) -> None:
    """Delete what only an interrupted attack needs: checkpoints take more room than all that was found."""
    shutil.rmtree(folder / "training", ignore_errors=True)
    for path in folder.glob("step_*.npz"):
        path.unlink()


def _seed(config_seed: int, audit_seed: int, purpose: int) -> int:
    """Different seeds for what an attack draws; the same for every model, so that they can be compared."""
    return int(np.random.SeedSequence((config_seed, audit_seed, purpose)).generate_state(1)[0] >> 1)
