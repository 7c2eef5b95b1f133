"""Functions to fit, evaluate, attack and apply the filter of `l2l_jax.evals.fast`."""

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

# Maximum numbers of training images per set for mining acceptable references, and of validation images
POOL, VALIDATION = 500, 500
PASSING = ("fid", "kid", "classifier_distance", "accuracy", "mse")  # metrics of the reconstructions that pass
NOT_UNLEARNING = "A filter is not unlearning: the weights still contain the knowledge that it blocks."


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
    """Return the reference images in a folder; raise a UserError if one is smaller than `size` pixels."""
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
    """Feature extractor of a filter: `network` or the encoder; `model` is filtered, see `fast.guarded`."""

    def __init__(self, config: Config, network: Any = None):
        task, model = parse_tasks(config.evaluate.tasks)[0], config.model
        if task.is_random:
            raise UserError(
                f"The first of config.evaluate.tasks is {task.name}, which masks other patches in each "
                "image; a filter needs the same mask for all images, such as centre_8."
            )
        self._config, self.network, mask = config, network, task.mask(model.image_size)

        def outputs(weights, images):
            return network.outputs(weights, images)["features"]

        self.model = fast.guarded(model, None if network is None else outputs)

        def features(given, params, image, key):
            model_params, weights = params
            if network is None:
                return fast.encoder_features(model, model_params, image[None], mask)[0]
            inpainted = image[None] if given else model.inpaint(model_params, image[None], mask, key)
            return outputs(weights, fast.bytes_of(model, inpainted))[0]

        size, seed = config.evaluate.batch_size, config.seed
        self._runners = {
            given: BatchedRunner(per_image(functools.partial(features, given), seed), size)
            for given in (False, True)
        }

    def __call__(
        self, params: Params | None, source: Source, name: str, *, given: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features `[image, feature]` of all decodable images of a source, and their indices.

        With `given`, the network is applied to the images themselves, which already are reconstructions.
        """
        images = ImageSet(self._config, source, name)
        weights = None if self.network is None else self.network.params
        both: Any = params, weights
        blocks = list(self._runners[given].over(both, images, name))
        if not blocks:
            raise UserError(f"None of the {len(source)} images of the set {name!r} can be decoded.")
        return np.concatenate([x for _, x in blocks]), np.concatenate([good.indices for good, _ in blocks])

    def identify(self, params: Params | None) -> dict[str, Any]:
        """Return values that identify the model of a filter: features, weights, image size and mask."""
        config = self._config
        identity = {"features": config.filter.features, "image_size": config.model.image_size}
        if self.network is not None:
            return identity | {"weights": dict(self.network.weights)["sha256"]}
        assert params is not None, "an encoder has parameters"
        weights = fingerprint(params, config.model.generative_parts)
        return identity | {"weights": weights, "task": parse_tasks(config.evaluate.tasks)[0].name}

    def describe(self, params: Params) -> dict[str, Any]:
        """Return the metadata of the filter of `config.filter`: the identity of its model, and its config."""
        return self.identify(params) | self._config.describe("filter")

    def guard(self, params: Params, part: Mapping[str, Any]) -> Params:
        """Return parameters for the filtered `model`; `part` is `Filter.part()`."""
        network = {} if self.network is None else {"network": self.network.params}
        return {**params, FILTER: {**part, **network}}


def _open(name: str) -> Any:
    """Return a published network, or raise a UserError with the reason why it is not available."""
    if name not in get_args(NetworkName):
        raise UserError("config.filter.features 'classifier' needs config.evaluate.features='classifier'.")
    networks, missing = open_networks(EvaluationConfig(networks=(name,)))  # type: ignore[arg-type]
    if name not in networks:
        raise UserError(f"config.filter.features is {name!r}: {next(iter(missing.values()))}.")
    return networks[name]


def open_reader(config: Config, evaluation: Evaluation) -> Reader:
    """Return the feature extractor of `config.filter`; raise a UserError if its network is not available."""
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
    fitted = fast.fit(*kinds, options, validation=validation, seed=config.seed)
    arrays = dict(reader.network.params) if options.features == "classifier" else {}
    return fitted._replace(card=reader.describe(params), network=arrays)


def detection(scores: Mapping[str, np.ndarray], threshold: float) -> dict[str, Any]:
    """Return recall, precision, false alarm rate and AUC of undesired ("forget") against "retain" scores.

    Each is given as value, low and high of its 95% bootstrap interval over images. Precision assumes equally
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
    """Return metrics of the outputs of an evaluated model that pass a filter, and of all outputs.

    Distances are measured to the originals of the retain set, because only these should pass.
    """
    passes = {split: np.array(scores) <= report["threshold"] for split, scores in report["scores"].items()}
    everything, by_title = {split: np.ones(len(x), bool) for split, x in passes.items()}, {}
    for title, chosen in (("all", everything), ("passing", passes)):

        def read(member, chosen=chosen):
            parts = {split: evaluation.observed(member, split, name) for split in chosen}
            kept = [part[chosen[split]] for split, part in parts.items() if part is not None]
            return np.concatenate(kept) if len(kept) == len(chosen) else None

        if not sum(x.sum() for x in chosen.values()):
            continue
        metrics = measure(read, lambda member: evaluation.observed(member, "retain"), evaluation.class_names)
        by_title[title] = {m: metrics.metrics[m] for m in PASSING if m in metrics.metrics}
        by_title[title] |= {f"{split} images": int(x.sum()) for split, x in chosen.items()}
    return by_title


def attack_filter(
    config: Config,
    evaluation: Evaluation,
    audits: pathlib.Path,
    original: Params,
    filtered: tuple[Reader, Params],
    name: str,
) -> dict[str, Any]:
    """Audit a filtered model, given as reader and filtered parameters, with attacks that search inputs."""
    attacks = ("views",) if config.model.why_no_samples else ("views", "sampler_search")
    audit, (reader, params) = dataclasses.replace(config.audit, attacks=attacks), filtered
    guarded = dataclasses.replace(config, model=reader.model, audit=audit)
    standard = gold_standard(config, original, audits)
    sets = training_sets(config.data, evaluation.train, config.model.image_size)
    auditor = Audit(guarded, evaluation.for_model(guarded.model), sets, audits)
    auditor.compare_with(original, standard)
    return auditor.audit(name, params)


def format_report(report: Mapping[str, Any]) -> str:
    """Format the tables of a report, and the note that a filter is not unlearning."""
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
    """Fit, evaluate and attack a filter; write it and a JSON report next to it.

    Args:
      config: Config of the experiment; with `config.audit.enabled`, the filter is attacked.
      workdir: Folder of a run, or a new folder; results of its evaluation and audit are reused.
      output: File of the filter.
      unlearned: Folder of an unlearned model to filter instead of the original, which combines filter and
        unlearning.

    Returns:
      The report: "detection", "passes", "card", "scores", "threshold", and "audit" if enabled.

    Raises:
      UserError: There is no model, or references are missing or unusable.
    """
    with barrier():
        original, served = served_model(config, workdir, unlearned)
        evaluation = Evaluation(config, workdir / "evaluation")
    reader = open_reader(config, evaluation)
    fitted = fit_filter(config, evaluation, reader, served)
    tests = {name: evaluation.tests[name].source for name in ("forget", "retain")}
    scores = {name: fitted.scores(reader(served, source, name)[0]) for name, source in tests.items()}
    report = {
        "card": fitted.card,
        "threshold": fitted.threshold,
        "detection": detection(scores, fitted.threshold),
        "not_unlearning": NOT_UNLEARNING,
        "scores": {name: x.tolist() for name, x in scores.items()},
    }
    name = "unlearned" if unlearned else "original"
    evaluation.evaluate(served, name)
    audits = {}
    if config.audit.enabled:
        filtered, title = (reader, reader.guard(served, fitted.part())), f"{name}_with_filter"
        audits["audit"] = attack_filter(config, evaluation, workdir / "audit", original, filtered, title)

    def write() -> dict[str, Any]:
        complete = report | {"passes": measure_passing(evaluation, name, report)} | audits
        fitted.save(output)
        atomic_write(output.with_suffix(".json"), json.dumps(complete, indent=2) + "\n")
        return complete

    return from_primary(write)


def served_model(config: Config, workdir: pathlib.Path, unlearned: str | None) -> tuple[Params, Params]:
    """Return the original model and the model to filter: the `unlearned` model if named, or the original."""
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
    """Copy the images of a folder that pass a filter, and write `decisions.csv`.

    Images keep their names. With the action "blur", the other images are written blurred instead of left out.
    The filter must have been fitted with the same config; for `workdir` and `unlearned` see `run_fit`.

    Returns:
      The number of images that "pass", and of the others under "refuse" or "blur".

    Raises:
      UserError: The filter belongs to another model, or the folder holds no images.
    """
    output, fitted, params = paths["output"], fast.load_filter(paths["filter"]), None
    if fitted.card["features"] == "encoder":  # other filters are applied to reconstructions
        params = served_model(config, workdir, unlearned)[1]
    source = _Images(paths["input"], "--input")
    reader = _reader_of(fitted, paths["filter"], config, params)
    features, indices = reader(params, source, "images", given=True)
    blocked, scores = fitted.blocks(features), fitted.scores(features)
    decided = dict(zip(indices.tolist(), zip(scores, blocked, strict=True), strict=True))

    def write() -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "score", "threshold", "decision"))
        for index, name in enumerate(source.files):
            if index not in decided:
                writer.writerow((name, "", "", "cannot be decoded"))
                continue
            score, refused = decided[index]
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
    """Return the feature extractor of a fitted filter; raise a UserError if it belongs to another model."""
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
    for name, noun in {"weights": "model or network", "image_size": "image size", "task": "mask"}.items():
        if fitted.card.get(name) != own.get(name):
            raise UserError(
                f"{path} is the filter of another {noun}: it was fitted with {fitted.card.get(name)}, but "
                f"this config has {own.get(name)}. Fit a new filter with `l2l-jax filter fit`."
            )
    return reader
