"""The folders of a run, and what identifies the run that they belong to."""

import dataclasses
import json
import logging
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax

from l2l_jax import shipped
from l2l_jax.audit.run import RECOMPUTED
from l2l_jax.config import Config, parse_config, upgrade
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.records import Source
from l2l_jax.data.sources import source_digest
from l2l_jax.data.transforms import TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.tasks import budget_task
from l2l_jax.models.base import Params
from l2l_jax.utils.claim import claim
from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.utils.text import split_names
from l2l_jax.weights.saved_models import load_params, read_card

logger = logging.getLogger(__name__)
# Fields that may change between a run and its continuation; besides `RECOMPUTED`, `PLACES` and devices
IRRELEVANT = ("log_every", "checkpoint_every", "workers", "max_bad_fraction", "general", "general_images")
# Fields that locate images and weights, which the digests of `Workdir.check_inputs` identify
PLACES = ("path", "pretrained")

FOLDERS = {
    "original": ("pretrain", "pretrained", "unlearn", "unlearned", "generated", "generated.blocks"),
    "unlearned": ("unlearn", "unlearned", "generated", "generated.blocks"),
}
"""Folders whose content depends on what identifies a model, by model."""

INPUTS = {
    "train": ("original", "the training images"),
    "retain": ("unlearned", "the images to retain"),
    "forget": ("unlearned", "the images to forget"),
    "retain validation": ("unlearned", "the validation images to retain"),
    "forget validation": ("unlearned", "the validation images to forget"),
    "weights": ("unlearned", "the weights of the original model"),
}
"""Inputs of a run whose digests are kept: the model that they identify, and their titles."""

# Seconds in which what one host writes must be seen by the others: longer than NFS caches a folder
SHARED_WITHIN = 15.0


class Workdir:
    """The folders of a run.

        pretrain/<phase>/   checkpoints and metrics of pretraining
        pretrained/         the original model
        generated/          images in place of retain images, if the original model made any
        unlearn/            checkpoints and metrics of unlearning
        unlearned/          the unlearned model
        evaluation/         what was observed of each image; figures.json of `l2l_jax.evaluate`
        audit/              results of attacks on the models
        report/             metrics, pictures, report.html
        run.json            the config, and digests of the images and the original's weights
        lock.json           the process that owns the folder

    Args:
      folder: Folder of the run, created if need be. On storage that all hosts of the run share.
      config: The config of the run now.
      redo: Delete what another config or other inputs have made, instead of refusing it; None: the command
        has no `--redo`.

    Raises:
      UserError: The folder belongs to another run, cannot be written, or is not the same on all hosts.
    """

    def __init__(self, folder: pathlib.Path, config: Config, *, redo: bool | None = None):
        self.folder = folder
        self.pretrain = folder / "pretrain"
        self.pretrained = folder / "pretrained"
        self.generated = folder / "generated"
        self.unlearn = folder / "unlearn"
        self.unlearned = folder / "unlearned"
        self.evaluation = folder / "evaluation"
        self.audit = folder / "audit"
        self.report = folder / "report"
        self.redo = redo
        self._release: Callable[[], None] | None = None
        self._record: dict[str, Any] = from_primary(lambda: self._claim(config))
        _check_shared(folder)

    def close(self) -> None:
        """Let other runs use the folder; a run that does not close it keeps it until its process ends."""
        if self._release is not None:
            self._release()

    def facts(self, model: str) -> dict[str, Any]:
        """Return what the card of the "original" or the "unlearned" model says of the run that made it."""
        made_by = {name: self._record[name] for name in ("config", "inputs")}
        return {"run": {"id": self._record["ids"][model], **made_by}}

    def load(self, model: str, like: Params) -> Params | None:
        """Return the "original" or the "unlearned" model that is finished here, or None.

        Raises:
          UserError: It cannot be read, or another run has made it.
        """
        place = self.pretrained if model == "original" else self.unlearned
        if not from_primary(place.exists):
            return None
        with barrier():
            run = read_card(place).get("run")  # cards of earlier versions have none
            if run is not None and run["id"] != self._record["ids"][model]:
                raise UserError(
                    f"The model in {place} was made by another run than that of {self.folder}/run.json. Use "
                    f"another --workdir, or delete {place} to have it made again."
                )
            params = load_params(place, like)
        logger.info("Using the %s model in %s", model, place)
        return params

    def check_inputs(self, identify: Callable[[], Mapping[str, dict[str, Any]]]) -> None:
        """Check that the models here were made from these images and weights, wherever they are stored.

        `identify` returns identities by keys of `INPUTS`; the primary process calls it.

        Raises:
          UserError: They were made from others.
        """

        def check() -> dict[str, Any]:
            for name, wanted in identify().items():
                found = self._record["inputs"].get(name)
                if found is not None and found != wanted:
                    model, title = INPUTS[name]
                    then, now = found.get("images"), wanted.get("images")
                    counts = f"{then} then, {now} now" if then != now else "names, sizes or classes"
                    detail = f" ({counts})" if "images" in wanted else ""
                    self._replace(model, [f"{title} have changed{detail}"])
                self._record["inputs"][name] = wanted
            self._write()
            return self._record

        self._record = from_primary(check)

    def _claim(self, config: Config) -> dict[str, Any]:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--workdir={self.folder} is a file; name a folder.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._release = claim(self.folder)
        except OSError as error:
            raise UserError(
                f"--workdir={self.folder} cannot be made or written ({error.strerror}). Choose another one."
            ) from error
        found, before = self._read()
        self._record = {"ids": found.get("ids", {}), "inputs": found.get("inputs", {})}
        for model, identity in _identity(config).items():
            if changes := _differences(before.get(model, {}), identity):
                self._replace(model, changes)
            self._record["ids"].setdefault(model, uuid.uuid4().hex)
        self._record["config"] = json.loads(json.dumps(config.describe()))
        self._write()
        return self._record

    def _replace(self, model: str, changes: list[str]) -> None:
        """Forget the run that has made a model here; delete what it made if the user has asked for it.

        Raises:
          UserError: The user has not.
        """
        present = [self.folder / name for name in FOLDERS[model] if (self.folder / name).exists()]
        if present and not self.redo:
            reuse = ""
            if model == "unlearned" and self.pretrained.exists():
                reuse = f" (--config.model.pretrained={self.pretrained} there starts from this model)"
            replace = "delete" if self.redo is None else "--redo to replace"
            raise UserError(
                f"{self.folder} holds another run: {'; '.join(changes)}. Use another --workdir{reuse}, or "
                f"{replace} {', '.join(map(str, present))}."
            )
        for place in present:
            shutil.rmtree(place)
        for name in ("original", "unlearned")[("original", "unlearned").index(model) :]:
            self._record["ids"][name] = uuid.uuid4().hex
        for name in [name for name, (owner, _) in INPUTS.items() if model in ("original", owner)]:
            self._record["inputs"].pop(name, None)

    def _read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what run.json holds, and the identity in it; both are empty if there is no such file."""
        path = self.folder / "run.json"
        if not path.exists():
            return {}, {}
        try:
            found = json.loads(path.read_text("utf-8"))
            for name in ("ids", "inputs"):
                dict(found.get(name, {}))
            return found, _identity_of(found) if found else {}
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Use another --workdir, or delete this one to start again."
            ) from error

    def _write(self) -> None:
        atomic_write(self.folder / "run.json", json.dumps(self._record, indent=2) + "\n")


def original_path(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Return where the original model is or will be: `config.pretrained`, or in the workdir."""
    return shipped.resolved(config.pretrained) if config.pretrained else workdir / "pretrained"


def identify_images(**sources: Source) -> dict[str, dict[str, Any]]:
    """Return number and digest of the images of sources, by their names."""
    return {name: {"images": len(x), "digest": source_digest(x)} for name, x in sources.items()}


def _check_shared(folder: pathlib.Path) -> None:
    """Raise a UserError unless every process finds in `folder` what the primary process puts there."""
    if jax.process_count() == 1:
        return

    def touch() -> str:
        name = f".shared-{uuid.uuid4().hex}"
        (folder / name).touch()
        return name

    name = from_primary(touch)
    with barrier():
        deadline = time.monotonic() + SHARED_WITHIN
        while not (folder / name).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"--workdir={folder} is not the same folder here as in process 0, which has just written "
                    f"{name} there: name a folder on storage that all hosts share."
                )
            time.sleep(0.2)
    on_primary((folder / name).unlink)


def _identity(config: Config) -> dict[str, Any]:
    """Return the fields that decide on each model, as JSON; files are identified by digests instead."""
    original = config.describe("seed", "family", "model", "pretrained")
    original["given"] = bool(config.pretrained)
    if not config.pretrained:
        original |= {"data": _source(config)} | config.describe("pretrain")
    unlearned = config.describe("data", "unlearn")
    for name in ("forget", "retain"):
        unlearned["data"][name] = [x for text in unlearned["data"][name] for x in split_names(str(text))]
    if config.unlearn.retain_budget is not None:
        unlearned["evaluate"] = {"first task": budget_task(config.evaluate.tasks).name}
    return json.loads(json.dumps({"original": original, "unlearned": unlearned}))


def _identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity that a run has stored, as this version describes it."""
    if "config" in record:
        kept = ("seed", "family", "pretrained", "model", "plugins", "data", "pretrain", "unlearn", "evaluate")
        stored = {name: value for name, value in record["config"].items() if name in kept}
        return _identity(parse_config(upgrade(stored)))
    original, unlearned = dict(record.get("pretrain", {})), dict(record.get("unlearn", {}))  # before 0.2
    if unlearned:
        stored = {"family": "", "model": {}, "unlearn": unlearned["unlearn"]}
        unlearned["unlearn"] = upgrade(stored)["unlearn"]
        for name in ("forget", "retain"):
            unlearned["data"][name] = [str(label) for label in unlearned["data"][name]]
    return {"original": original, "unlearned": unlearned}


def _source(config: Config) -> dict[str, Any]:
    """Return where all images come from, whichever are chosen, and how they become squares."""
    fields = (*dataclasses.fields(SourceConfig), *dataclasses.fields(TransformConfig))
    return {field.name: getattr(config.data, field.name) for field in fields}


def _differences(found: Any, wanted: Any, name: str = "config") -> list[str]:
    """Return sentences about the fields that differ and matter; those that a record lacks are new."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted((set(found) & set(wanted)) - {*IRRELEVANT, *RECOMPUTED, *PLACES})
        return [d for n in names for d in _differences(found[n], wanted[n], f"{name}.{n}")]
    return [] if found == wanted else [f"{name} was {found!r} and is now {wanted!r}"]
