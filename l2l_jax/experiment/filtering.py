"""Fitting, measuring, attacking and applying the filter of `l2l_jax.evals.fast`."""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import shutil
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from PIL import Image
from tabulate import tabulate

from l2l_jax.audit.comparison import auc
from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.records import Record, Source, evenly_spaced
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import training_sets, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals import fast
from l2l_jax.evals.config import EvaluationConfig, NetworkName
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.fast import FILTER, MINED, Filter, FilterConfig
from l2l_jax.evals.features.classifier import SmallClassifier
from l2l_jax.evals.features.networks import open_networks
from l2l_jax.evals.folders import open_images
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.intervals import bootstrap
from l2l_jax.evals.metrics import METRICS, measure
from l2l_jax.evals.runner import BatchedRunner, per_image
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.experiment.gold_standard import gold_standard
from l2l_jax.experiment.workdir import original_path
from l2l_jax.methods.inputs import BLUR, blurred
from l2l_jax.models.base import Params
from l2l_jax.report.tables import attack_table
from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import fingerprint

# Training images of each set among which acceptable references are mined, and validation images, at most
POOL, VALIDATION = 500, 500
PASSING = ("fid", "kid", "classifier_distance", "accuracy", "mse")  # metrics of the reconstructions that pass
NOT_UNLEARNING = "No filter is unlearning: the weights still know what it refuses."


class _Images(Source):
    """The images below a folder."""

    class_names = ("image",)

    def __init__(self, folder: pathlib.Path, flag: str):
        self.files = list(open_images(folder, flag).files.values())
        self.folder, self.labels = folder, np.zeros(len(self.files), int)

    def __getitem__(self, index: int) -> Record:
        path = self.folder / self.files[index]
        return {"image": path.read_bytes(), "label": 0, "name": str(path)}


def _references(folder: pathlib.Path, name: str, options: FilterConfig, size: int) -> Source:
    """Return the references in a folder; raise a UserError if an image is smaller than the model's."""
    source = _Images(folder, f"--config.filter.{name}")
    for file in source.files:
        try:
            image = open_image((folder / file).read_bytes())
        except ImageError as error:
            raise UserError(f"{folder / file} cannot be decoded ({error}).") from None
        if min(image.height, image.width) < size:
            raise UserError(
                f"The reference {folder / file} has {image.width}×{image.height} pixels; expected at least "
                f"{size}×{size}, as the model's images have."
            )
    return evenly_spaced(source, options.references)


class Reader:
    """Features that a filter reads, of `network` or the encoder; `model` is guarded, see `fast.guarded`."""

    def __init__(self, config: Config, network: Any = None):
        task, model = parse_tasks(config.evaluate.tasks)[0], config.model
        if task.is_random:
            raise UserError(
                f"The first of config.evaluate.tasks is {task.name}, which masks other patches of each "
                "image; a filter needs one mask for all, such as centre_8."
            )
        self._config, self.network, mask = config, network, task.mask(model.image_size)

        def outputs(weights, images):
            return network.outputs(weights, images)["features"]

        self.model = fast.guarded(model, None if network is None else outputs)

        def features(given, params, image, key):
            whole, weights = params
            if network is None:
                return fast.encoder_features(model, whole, image[None], mask)[0]
            shown = image[None] if given else model.inpaint(whole, image[None], mask, key)
            return outputs(weights, fast.bytes_of(model, shown))[0]

        size, seed = config.evaluate.batch_size, config.seed
        self._runners = {
            given: BatchedRunner(per_image(functools.partial(features, given), seed), size)
            for given in (False, True)
        }

    def __call__(
        self, params: Params | None, source: Source, name: str, *, given: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features `[image, feature]` of a source's images that can be decoded, and their places.

        With `given`, a network is shown the images themselves, which are reconstructions already.
        """
        images = ImageSet(self._config, source, name)
        weights = None if self.network is None else self.network.params
        both: Any = params, weights
        blocks = list(self._runners[given].over(both, images, name))
        if not blocks:
            raise UserError(f"None of the {len(source)} images of the set {name!r} can be decoded.")
        return np.concatenate([x for _, x in blocks]), np.concatenate([good.indices for good, _ in blocks])

    def identify(self, params: Params | None) -> dict[str, Any]:
        """Return what a filter belongs to: features, weights, size and mask."""
        config = self._config
        card = {"features": config.filter.features, "image_size": config.model.image_size}
        if self.network is not None:
            return card | {"weights": dict(self.network.weights)["sha256"]}
        assert params is not None, "an encoder has parameters"
        weights = fingerprint(params, config.model.generative_parts)
        return card | {"weights": weights, "task": parse_tasks(config.evaluate.tasks)[0].name}

    def describe(self, params: Params) -> dict[str, Any]:
        """Return the card of the filter of `config.filter`: what it belongs to, and how it is made."""
        return self.identify(params) | self._config.describe("filter")

    def guard(self, params: Params, part: Mapping[str, Any]) -> Params:
        """Return parameters that the served `model` filters; `part` is `Filter.part()`."""
        network = {} if self.network is None else {"network": self.network.params}
        return {**params, FILTER: {**part, **network}}


def _open(name: str) -> Any:
    """Return a published network, or raise a UserError that says why it is not here."""
    if name not in get_args(NetworkName):
        raise UserError("config.filter.features is 'classifier': config.evaluate.features must be, too.")
    networks, missing = open_networks(EvaluationConfig(networks=(name,)))  # type: ignore[arg-type]
    if name not in networks:
        raise UserError(f"config.filter.features is {name!r}: {next(iter(missing.values()))}.")
    return networks[name]


def open_reader(config: Config, evaluation: Evaluation) -> Reader:
    """Return what the filter of `config.filter` reads; raise a UserError if its network is not here."""
    name = config.filter.features
    return Reader(config, None if name == "encoder" else evaluation.networks.get(name) or _open(name))


def fit_filter(config: Config, evaluation: Evaluation, reader: Reader, params: Params) -> Filter:
    """Fit the filter of `config.filter` for a model.

    Raises:
      UserError: References or validation images are missing or unusable.
    """
    options, size = config.filter, config.model.image_size

    def read(source: Source, name: str, given: bool = False) -> np.ndarray:
        return reader(params, source, name, given=given)[0]

    data = dataclasses.replace(config.data, proxy=(), retain_images="real", prototypes="")
    sets = training_sets(data, evaluation.train, size)
    folders = {
        name: _references(pathlib.Path(path), name, options, size)
        for name, path in (("undesired", options.undesired), ("acceptable", options.acceptable))
        if path and (name, path) != ("acceptable", MINED)
    }
    references = {name: read(source, name, True) for name, source in folders.items()}
    if options.acceptable == MINED:
        pool = [read(evenly_spaced(x, POOL), f"{split} pool") for split, x in sets._asdict().items()]
        references["acceptable"] = np.concatenate(pool)
    for name, own in (("undesired", sets.forget), ("acceptable", sets.retain)):
        if name not in references:
            references[name] = read(evenly_spaced(own, options.references), name)
    validation = None
    if options.false_alarms != "mean" and config.data.validation_fraction:
        held_out = validation_sets(config.data, open_source(config.data, "validation", size)).retain
        validation = read(evenly_spaced(held_out, VALIDATION), "validation")
    kinds = references["undesired"], references["acceptable"]
    found = fast.fit(*kinds, options, validation=validation, seed=config.seed)
    arrays = dict(reader.network.params) if options.features == "classifier" else {}
    return found._replace(card=reader.describe(params), network=arrays)


def detection(scores: Mapping[str, np.ndarray], threshold: float) -> dict[str, Any]:
    """Return recall, precision, false alarms and AUC of undesired ("forget") against "retain" scores.

    Each has value, low and high of its 95 % bootstrap interval over images. The precision is that of equally
    frequent sets.
    """
    undesired, acceptable = (scores[name] for name in ("forget", "retain"))
    caught, alarmed = undesired > threshold, acceptable > threshold
    counts = len(undesired), len(acceptable)

    def precision(i, j):
        recall, alarms = caught[i].mean(-1), alarmed[j].mean(-1)
        total = recall + alarms
        return np.divide(recall, total, where=total > 0, out=np.full(recall.shape, np.nan))

    return {
        "recall": list(bootstrap(lambda i: caught[i].mean(-1), counts[0])),
        "precision": list(bootstrap(precision, *counts)),
        "false_alarms": list(bootstrap(lambda j: alarmed[j].mean(-1), counts[1])),
        "auc": list(bootstrap(lambda i, j: auc(acceptable[j], undesired[i]), *counts)),
    }


def measure_passing(evaluation: Evaluation, name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics of what a filter lets pass of an evaluated model, and of all that the model shows.

    Distances are those to the originals of the retain set, which alone should come out.
    """
    passes = {split: np.array(scores) <= report["threshold"] for split, scores in report["scores"].items()}
    whole, found = {split: np.ones(len(x), bool) for split, x in passes.items()}, {}
    for title, chosen in (("all", whole), ("passing", passes)):

        def read(member, chosen=chosen):
            parts = {split: evaluation.observed(member, split, name) for split in chosen}
            kept = [part[chosen[split]] for split, part in parts.items() if part is not None]
            return np.concatenate(kept) if len(kept) == len(chosen) else None

        if not sum(x.sum() for x in chosen.values()):
            continue
        metrics = measure(read, lambda member: evaluation.observed(member, "retain"), evaluation.class_names)
        found[title] = {m: metrics.metrics[m] for m in PASSING if m in metrics.metrics}
        found[title] |= {f"{split} images": int(x.sum()) for split, x in chosen.items()}
    return found


def attack_filter(
    config: Config,
    evaluation: Evaluation,
    audits: pathlib.Path,
    original: Params,
    filtered: tuple[Reader, Params],
    name: str,
) -> dict[str, Any]:
    """Audit a filtered model, given as reader and guarded parameters, by the attacks that search inputs."""
    attacks = ("views",) if config.model.why_no_samples else ("views", "sampler_search")
    audit, (reader, params) = dataclasses.replace(config.audit, attacks=attacks), filtered
    guarded = dataclasses.replace(config, model=reader.model, audit=audit)
    standard = gold_standard(config, original, audits)
    sets = training_sets(config.data, evaluation.train, config.model.image_size)
    auditor = Audit(guarded, evaluation.for_model(guarded.model), sets, audits)
    auditor.compare_with(original, standard)
    return auditor.audit(name, params)


def format_report(report: Mapping[str, Any]) -> str:
    """Return the tables of a report, and what a filter is not."""
    detect = [[name, f"{x[0]:.3f}", f"{x[1]:.3f} – {x[2]:.3f}"] for name, x in report["detection"].items()]
    parts = [tabulate(detect, headers=["test images", "", "95% CI"], disable_numparse=True)]
    if passes := report.get("passes"):
        names = [name for name in PASSING if name in passes["all"]]
        counts = [f"{split} images" for split in report["scores"]]
        body = [[title, *(row[c] for c in counts), *(row[n] for n in names)] for title, row in passes.items()]
        headings = ["reconstructions", *counts, *(METRICS[name].heading for name in names)]
        formats = ("", *[""] * len(counts), *(METRICS[name].format for name in names))
        parts.append(tabulate(body, headers=headings, floatfmt=formats))
    if audit := report.get("audit"):
        table = attack_table(audit, intervals=False).text()
        parts.append(f"Attacks on the filtered model: {audit['verdict']['finding']}.\n\n{table}")
    return "\n\n".join([*parts, report["not_unlearning"]])


def run_fit(config: Config, workdir: pathlib.Path, output: pathlib.Path, unlearned: str | None = None) -> Any:
    """Fit a filter, measure and attack it, and write it and, next to it, the report as JSON.

    Args:
      config: The experiment; with `config.audit.enabled` the filter is attacked.
      workdir: Folder of a run, or a new one; results of its evaluation and audit are used again.
      output: File of the filter.
      unlearned: Folder of an unlearned model to filter in place of the original: filter and unlearning
        together.

    Returns:
      The report: "detection", "passes", "card", "scores", "threshold", and the "audit", if there was one.

    Raises:
      UserError: There is no model, or references are missing or unusable.
    """
    with barrier():
        original, served = served_model(config, workdir, unlearned)
        evaluation = Evaluation(config, workdir / "evaluation")
    reader = open_reader(config, evaluation)
    found = fit_filter(config, evaluation, reader, served)
    tests = {name: evaluation.tests[name].source for name in ("forget", "retain")}
    scores = {name: found.scores(reader(served, source, name)[0]) for name, source in tests.items()}
    report = {
        "card": found.card,
        "threshold": found.threshold,
        "detection": detection(scores, found.threshold),
        "not_unlearning": NOT_UNLEARNING,
        "scores": {name: x.tolist() for name, x in scores.items()},
    }
    name = "unlearned" if unlearned else "original"
    evaluation.evaluate(served, name)
    audits = {}
    if config.audit.enabled:
        filtered, title = (reader, reader.guard(served, found.part())), f"{name}_with_filter"
        audits["audit"] = attack_filter(config, evaluation, workdir / "audit", original, filtered, title)

    def write() -> dict[str, Any]:
        whole = report | {"passes": measure_passing(evaluation, name, report)} | audits
        found.save(output)
        atomic_write(output.with_suffix(".json"), json.dumps(whole, indent=2) + "\n")
        return whole

    return from_primary(write)


def served_model(config: Config, workdir: pathlib.Path, unlearned: str | None) -> tuple[Params, Params]:
    """Return the original model and the served one: the unlearned one that is named, or the original."""
    original = original_path(config, workdir)
    paths = [original, pathlib.Path(unlearned) if unlearned else original]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"There is no model to filter: {path} does not exist. Run `python -m l2l_jax.main` first, or "
                "name one with --config.model.pretrained or --unlearned."
            )
    models = [load_pretrained(path, config.family, config.model) for path in dict.fromkeys(paths)]
    return models[0], models[-1]


def run_apply(
    config: Config,
    paths: Mapping[str, pathlib.Path],
    action: str,
    workdir: pathlib.Path,
    unlearned: str | None = None,
) -> dict[str, int]:
    """Copy the images of a folder that a filter lets pass, and write `decisions.csv`.

    Images keep their names. With `blur` the others are written blurred, instead of left out. The config is
    that which the filter was fitted with; for `workdir` and `unlearned` see `run_fit`.

    Returns:
      The number of images that "pass", and of the others, "refuse" or "blur".

    Raises:
      UserError: The filter is one of another model, or the folder holds no images.
    """
    output, fitted, params = paths["output"], fast.load_filter(paths["filter"]), None
    if fitted.card["features"] == "encoder":  # others are given reconstructions
        params = served_model(config, workdir, unlearned)[1]
    source = _Images(paths["input"], "--input")
    found, places = _reader_of(fitted, paths["filter"], config, params)(params, source, "images", given=True)
    blocked, scores = fitted.blocks(found), fitted.scores(found)
    decided = dict(zip(places.tolist(), zip(scores, blocked, strict=True), strict=True))

    def write() -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "score", "threshold", "decision"))
        for place, name in enumerate(source.files):
            if place not in decided:
                writer.writerow((name, "", "", "cannot be decoded"))
                continue
            score, refused = decided[place]
            writer.writerow((name, f"{score:.6g}", f"{fitted.threshold:.6g}", action if refused else "pass"))
            if refused and action == "refuse":
                continue
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            if refused:
                pixels = jnp.asarray(open_image((source.folder / name).read_bytes()).pixels(), jnp.float32)
                image = blurred(pixels[None], BLUR * min(pixels.shape[:2]))[0]
                rounded = np.rint(np.asarray(image)).astype(np.uint8)
                Image.fromarray(rounded).save((output / name).with_suffix(".png"))
            else:
                shutil.copyfile(source.folder / name, output / name)
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(output / "decisions.csv", text.getvalue())

    on_primary(write)
    return {"pass": int((~blocked).sum()), action: int(blocked.sum())}


def _reader_of(fitted: Filter, path: pathlib.Path, config: Config, params: Params | None) -> Reader:
    """Return what a filter reads, or raise a UserError if it is a filter of something else."""
    features = fitted.card["features"]
    network: Any = None
    if features == "classifier":
        weights = {"sha256": fitted.card["weights"]}
        network = SimpleNamespace(params=fitted.network, outputs=SmallClassifier.outputs, weights=weights)
    elif features != "encoder":
        network = _open(features)
    config = dataclasses.replace(config, filter=dataclasses.replace(config.filter, features=features))
    reader = Reader(config, network)
    own = reader.identify(params)
    for name, what in {"weights": "model or network", "image_size": "image size", "task": "mask"}.items():
        if fitted.card.get(name) != own.get(name):
            raise UserError(
                f"{path} is the filter of another {what}: it was fitted with {fitted.card.get(name)}, and "
                f"this is {own.get(name)}. Fit one with `l2l-jax filter fit`."
            )
    return reader
