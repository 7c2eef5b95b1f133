"""What lies in a workdir, and whether it belongs to this run."""

import dataclasses
import json
import pathlib
import time
import uuid
from typing import Any

import jax

from l2l_jax.config import Config
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.transforms import TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.tasks import budget_task
from l2l_jax.utils.multihost import barrier, from_primary, is_primary, on_primary

IRRELEVANT = ("log_every", "checkpoint_every", "workers", "max_bad_fraction", "general", "general_images")
"""Fields that may change between a run and its continuation; besides `RECOMPUTED` and the devices."""

RECOMPUTED = ("remat", "scan")
"""Fields of a model that say how it is computed, not what it computes."""

ORIGINAL = ("pretrain", "pretrained")
UNLEARNED = ("unlearn", "unlearned", "generated", "generated.unfinished")

SHARED_WITHIN = 15.0
"""Seconds in which what one host writes must be seen by the others: longer than NFS caches a folder."""


class Workdir:
    """The folders of a run.

        pretrain/<stage>/   checkpoints and scalars of pretraining
        pretrained/         the original model
        generated/          images in place of retain images, if the original model made any
        unlearn/            checkpoints and scalars of unlearning
        unlearned/          the unlearned model
        evaluation/         what was observed of each image; figures.json of `l2l_jax.evaluate`
        audit/              what attacks on the models found
        report/             figures, pictures, report.html
        run.json            what was asked for

    Args:
      folder: its place; made if need be. On storage that all hosts of the run share.
      config: what is asked for now.

    Raises:
      UserError: the folder holds another run, cannot be written, or is not the same on all hosts.
    """

    def __init__(self, folder: pathlib.Path, config: Config):
        self.folder = folder
        self.pretrain = folder / "pretrain"
        self.pretrained = folder / "pretrained"
        self.generated = folder / "generated"
        self.unlearn = folder / "unlearn"
        self.unlearned = folder / "unlearned"
        self.evaluation = folder / "evaluation"
        self.audit = folder / "audit"
        self.report = folder / "report"
        self._identity_file = folder / "run.json"
        on_primary(lambda: self._claim(config))
        _check_shared(folder)

    def _claim(self, config: Config) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--workdir={self.folder} is a file; name a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_identity(_identity(config))

    def _check_identity(self, wanted: dict[str, Any]) -> None:
        if self._identity_file.exists():
            try:
                found = json.loads(self._identity_file.read_text())
            except ValueError as error:
                raise UserError(
                    f"{self._identity_file} is damaged ({error}). Use another --workdir, or delete "
                    "this one to start again."
                ) from error
            self._compare("pretrain", found, wanted, (*ORIGINAL, *UNLEARNED))
            self._compare("unlearn", found, wanted, UNLEARNED)
        text = json.dumps(wanted, indent=2) + "\n"
        unfinished = self._identity_file.with_suffix(".unfinished")
        unfinished.write_text(text)
        unfinished.replace(self._identity_file)

    def _compare(self, part: str, found: dict, wanted: dict, folders: tuple[str, ...]) -> None:
        present = [name for name in folders if (self.folder / name).exists()]
        changes = _differences(found.get(part, {}), wanted[part])
        if not present or not changes:
            return
        reuse = (
            f" (--config.model.pretrained={self.pretrained} there starts from this pretrained model)"
            if part == "unlearn" and self.pretrained.exists()
            else ""
        )
        raise UserError(
            f"{self.folder} holds another run: {'; '.join(changes)}. Use another --workdir{reuse}, or "
            f"delete {', '.join(str(self.folder / name) for name in present)} to replace it."
        )


def _check_shared(folder: pathlib.Path) -> None:
    """Raise a UserError unless every process finds in `folder` what the primary process puts there."""
    if jax.process_count() == 1:
        return
    name = from_primary(lambda: f".shared-{uuid.uuid4().hex}")
    if is_primary():
        (folder / name).touch()
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
    original = config.describe("seed", "family", "model", "pretrained")
    if not config.pretrained:
        original |= {"data": _source(config)} | config.describe("pretrain")
    for name in RECOMPUTED:
        original["model"].pop(name, None)
    identity = {"pretrain": original, "unlearn": config.describe("data", "unlearn")}
    if config.unlearn.retain_budget is not None:
        identity["unlearn"]["evaluate"] = {"first task": budget_task(config.evaluate.tasks).name}
    for section in (*original.get("pretrain", {}).values(), *identity["unlearn"].values()):
        for name in IRRELEVANT:
            section.pop(name, None)
    return json.loads(json.dumps(identity))


def _source(config: Config) -> dict[str, Any]:
    """Where all images come from, whichever are chosen, and how they become squares."""
    fields = (*dataclasses.fields(SourceConfig), *dataclasses.fields(TransformConfig))
    return {field.name: getattr(config.data, field.name) for field in fields}


def _differences(found: Any, wanted: Any, name: str = "config") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(set(found) | set(wanted))
        return [d for n in names for d in _differences(found.get(n), wanted.get(n), f"{name}.{n}")]
    return [] if found == wanted else [f"{name} was {found!r} and is now {wanted!r}"]
