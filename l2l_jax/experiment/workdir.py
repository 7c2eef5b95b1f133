"""The folders of a run and the identity of the run they belong to."""

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
# Fields that may change when a run is resumed, in addition to `RECOMPUTED`, `PLACES` and devices
IRRELEVANT = ("log_every", "checkpoint_every", "workers", "max_bad_fraction", "general", "general_images")
# Fields that locate images and weights, which the digests of `Workdir.check_inputs` identify
PLACES = ("path", "pretrained")

FOLDERS = {
    "original": ("pretrain", "pretrained", "unlearn", "unlearned", "generated", "generated.blocks"),
    "unlearned": ("unlearn", "unlearned", "generated", "generated.blocks"),
}
"""Folders whose contents depend on the identity of a model, by model."""

INPUTS = {
    "train": ("original", "the training images"),
    "retain": ("unlearned", "the images to retain"),
    "forget": ("unlearned", "the images to forget"),
    "retain validation": ("unlearned", "the validation images to retain"),
    "forget validation": ("unlearned", "the validation images to forget"),
    "weights": ("unlearned", "the weights of the original model"),
}
"""Inputs of a run whose digests are stored: the model that they identify, and their titles."""

# Seconds within which other hosts must see a new file: longer than NFS caches a folder
SHARED_WITHIN = 15.0


class Workdir:
    """The folders of a run.

        pretrain/<phase>/   checkpoints and metrics of pretraining
        pretrained/         the original model
        generated/          generated images that replace retain images, if any
        unlearn/            checkpoints and metrics of unlearning
        unlearned/          the unlearned model
        evaluation/         per-image observations; figures.json of `l2l_jax.evaluate`
        audit/              results of attacks on the models
        report/             metrics, images, report.html
        run.json            the config, and digests of the images and the original's weights
        lock.json           the process that owns the folder

    Args:
      folder: Folder of the run, created if missing. It must be on storage that all hosts of the run share.
      config: Current config of the run.
      redo: Delete results of another config or other inputs, instead of raising an error; None: the command
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
        """Release the folder for other runs; without this call, it is released when the process ends."""
        if self._release is not None:
            self._release()

    def facts(self, model: str) -> dict[str, Any]:
        """Return the metadata of the "original" or the "unlearned" model about the run that created it."""
        provenance = {name: self._record[name] for name in ("config", "inputs")}
        return {"run": {"id": self._record["ids"][model], **provenance}}

    def load(self, model: str, like: Params) -> Params | None:
        """Load the finished "original" or "unlearned" model of this run, or return None if there is none.

        Raises:
          UserError: The model cannot be read or was created by another run.
        """
        path = self.pretrained if model == "original" else self.unlearned
        if not from_primary(path.exists):
            return None
        with barrier():
            run = read_card(path).get("run")  # missing in the metadata of earlier versions
            if run is not None and run["id"] != self._record["ids"][model]:
                raise UserError(
                    f"The model in {path} was made by another run than that of {self.folder}/run.json. Use "
                    f"another --workdir, or delete {path} to create it again."
                )
            params = load_params(path, like)
        logger.info("Using the %s model in %s", model, path)
        return params

    def check_inputs(self, identify: Callable[[], Mapping[str, dict[str, Any]]]) -> None:
        """Check that the models of this run were created from these images and weights.

        `identify` returns identities by keys of `INPUTS`, independent of file locations; the primary process
        calls it.

        Raises:
          UserError: The models were created from other inputs.
        """

        def check() -> dict[str, Any]:
            for name, current in identify().items():
                stored = self._record["inputs"].get(name)
                if stored is not None and stored != current:
                    model, title = INPUTS[name]
                    then, now = stored.get("images"), current.get("images")
                    counts = f"{then} then, {now} now" if then != now else "names, sizes or classes"
                    detail = f" ({counts})" if "images" in current else ""
                    self._replace(model, [f"{title} have changed{detail}"])
                self._record["inputs"][name] = current
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
                f"--workdir={self.folder} cannot be created or written ({error.strerror}). Choose another."
            ) from error
        stored, previous = self._read()
        self._record = {"ids": stored.get("ids", {}), "inputs": stored.get("inputs", {})}
        for model, identity in _identity(config).items():
            if changes := _differences(previous.get(model, {}), identity):
                self._replace(model, changes)
            self._record["ids"].setdefault(model, uuid.uuid4().hex)
        self._record["config"] = json.loads(json.dumps(config.describe()))
        self._write()
        return self._record

    def _replace(self, model: str, changes: list[str]) -> None:
        """Replace the run that created a model in this folder; with `redo`, delete its results.

        Raises:
          UserError: There are results and `redo` is not set.
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
        for path in present:
            shutil.rmtree(path)
        for name in ("original", "unlearned")[("original", "unlearned").index(model) :]:
            self._record["ids"][name] = uuid.uuid4().hex
        for name in [name for name, (owner, _) in INPUTS.items() if model in ("original", owner)]:
            self._record["inputs"].pop(name, None)

    def _read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the contents of run.json and the identity in it; both are empty if there is no such file."""
        path = self.folder / "run.json"
        if not path.exists():
            return {}, {}
        try:
            record = json.loads(path.read_text("utf-8"))
            for name in ("ids", "inputs"):
                dict(record.get(name, {}))
            return record, _identity_of(record) if record else {}
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Use another --workdir, or delete this one to start again."
            ) from error

    def _write(self) -> None:
        atomic_write(self.folder / "run.json", json.dumps(self._record, indent=2) + "\n")


def original_path(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Return the path of the original model: `config.pretrained`, or its path in the workdir."""
    return shipped.resolved(config.pretrained) if config.pretrained else workdir / "pretrained"


def identify_images(**sources: Source) -> dict[str, dict[str, Any]]:
    """Return the number and the digest of the images of each source, by name."""
    return {name: {"images": len(x), "digest": source_digest(x)} for name, x in sources.items()}


def _check_shared(folder: pathlib.Path) -> None:
    """Raise a UserError unless every process sees in `folder` a file written by the primary process."""
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
    """Return the fields that determine each model, as JSON values; files are identified by digests."""
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
    """Return the identity in a stored run record, in the format of this version."""
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
    """Return the fields for the source of all images, regardless of selection, and for their cropping."""
    fields = (*dataclasses.fields(SourceConfig), *dataclasses.fields(TransformConfig))
    return {field.name: getattr(config.data, field.name) for field in fields}


def _differences(stored: Any, current: Any, name: str = "config") -> list[str]:
    """Describe the relevant fields that differ; fields missing from the stored record are ignored as new."""
    if isinstance(stored, dict) and isinstance(current, dict):
        names = sorted((set(stored) & set(current)) - {*IRRELEVANT, *RECOMPUTED, *PLACES})
        return [d for n in names for d in _differences(stored[n], current[n], f"{name}.{n}")]
    return [] if stored == current else [f"{name} was {stored!r} and is now {current!r}"]
