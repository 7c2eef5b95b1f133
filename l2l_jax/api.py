"""Functions for notebooks: load a model, unlearn, inpaint, evaluate, audit.

They write the same files as the programs, so a run can be resumed and audited from the command line.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax.config import Config, parse_config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.metrics import masked_mse, psnr, to_uint8
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.experiment import pipeline
from l2l_jax.models.base import FAMILIES, Model, Params
from l2l_jax.utils.io import atomic_file
from l2l_jax.weights.loading import load_model as load
from l2l_jax.weights.saved_models import load_params, save_model

__all__ = ["Result", "audit", "evaluate", "inpaint", "load", "unlearn"]
ImageArrays = np.ndarray | tuple[np.ndarray, np.ndarray]
"""Images `[image, height, width, channel]`, uint8 or floats in the model's range, or (images, labels)."""

BATCH_SIZE = 64
PICTURES = 8  # test images per set in `Result.pictures`


@dataclasses.dataclass(frozen=True)
class Result:
    """An unlearned model and its metrics on held-out images.

    Attributes:
      model: The model, without parameters.
      params: Parameters after unlearning.
      metrics: Contents of `metrics.json`: metrics of both models by set, configuration, durations.
      pictures: Test images by set, each as "images", "masked", "original" and "unlearned",
        `[image, height, width, channel]` in the model's range.
      workdir: Folder with the models, checkpoints and `report/report.html`.
    """

    model: Model
    params: Params
    metrics: dict[str, Any]
    pictures: dict[str, dict[str, np.ndarray]]
    workdir: pathlib.Path


def unlearn(
    model: Model,
    params: Params,
    retain: ImageArrays,
    forget: ImageArrays,
    *,
    method: str = "undo",
    retain_budget: float | None = 1.15,
    workdir: str | pathlib.Path | None = None,
    **config: Any,
) -> Result:
    """Make a model forget some images and retain others.

    A fifth of each class is held out for testing, and 15% of the remaining images for the retain budget.

    Args:
      model: Model, without parameters.
      params: Parameters of all parts of the model; not modified.
      retain: Images to retain.
      forget: Images to forget. The labels of the two sets must not overlap.
      method: Name of a registered method.
      retain_budget: Largest masked MSE on retain images, relative to the original model; None: fixed alpha.
      workdir: Folder of the run; a call with the same arguments resumes it. None: a temporary folder.
      **config: Sections of the config, such as `unlearn={"steps": 200}`, `evaluate={…}` or `seed=1`.

    Raises:
      UserError: The arguments do not fit together; the message says how to fix it.
    """
    folder = pathlib.Path(workdir or tempfile.mkdtemp(prefix="l2l_jax_"))
    unlearning = {"method": method, "retain_budget": retain_budget, **config.pop("unlearn", {})}
    run = _write_inputs(model, params, (retain, forget), folder, {**config, "unlearn": unlearning})
    metrics = pipeline.run(run, folder)
    unlearned = load_params(folder / "unlearned", model.shapes())
    return Result(model, unlearned, metrics, _pictures(run, params, unlearned), folder)


def audit(
    model: Model,
    original: Params,
    unlearned: Params,
    retain: ImageArrays,
    forget: ImageArrays,
    *,
    workdir: str | pathlib.Path | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Attack an unlearned model and return the contents of `metrics.json`, with the verdict under "audit".

    Args:
      model: Model, without parameters.
      original: Parameters before unlearning, all parts.
      unlearned: Parameters after unlearning, all parts.
      retain: Images to retain, as given to `unlearn`.
      forget: Images to forget, as given to `unlearn`.
      workdir: Folder of the audit; an interrupted audit is resumed. None: a temporary folder.
      **config: Sections of the config, such as `audit={"retrained": "runs/retrained"}`: the folder of a model
        that was trained without the forget images. A verdict requires such a model.

    Raises:
      UserError: The arguments do not fit together.
    """
    folder = pathlib.Path(workdir or tempfile.mkdtemp(prefix="l2l_jax_"))
    settings = {"retrained": "", **config.pop("audit", {}), "enabled": True}
    run = _write_inputs(model, original, (retain, forget), folder, {**config, "audit": settings})
    metadata = {**run.describe("family", "model"), "origin": "given to l2l_jax.audit"}
    save_model(folder / "audited", jax.device_get(unlearned), metadata)
    return pipeline.audit(run, folder, folder / "audited")


def inpaint(
    model: Model, params: Params, images: np.ndarray, task: str = "centre_8", *, seed: int = 0
) -> np.ndarray:
    """Mask a region of each image and reconstruct it.

    Args:
      model: Model, without parameters.
      params: Parameters of all parts of the model.
      images: `[image, height, width, channel]`, uint8 or floats in the model's range.
      task: Name of the mask, as in `config.evaluate.tasks`: "centre_8" is a centered square of half the side.
      seed: Random seed for sampling.

    Returns:
      Images with the masked region reconstructed, float32 in the model's range.
    """
    inpainter = _inpainter(model, task, seed)
    return inpainter(inpainter.place(params), _rows(model, images), "images")


def evaluate(
    model: Model, params: Params, images: np.ndarray, task: str = "centre_8", *, seed: int = 0
) -> dict[str, float]:
    """Return the mean "mse" and "psnr" (dB) of reconstructions in the masked region; see `inpaint`."""
    rows, inpainter = _rows(model, images), _inpainter(model, task, seed)
    inpainted = inpainter(inpainter.place(params), rows, "images")
    errors = masked_mse(rows.images, inpainted, inpainter.masks("images", rows.indices))
    return {"mse": float(errors.mean()), "psnr": float(psnr(errors, model.value_range).mean())}


def _inpainter(model: Model, task: str, seed: int) -> Inpainter:
    return Inpainter(model, parse_tasks((task,))[0], batch_size=BATCH_SIZE, seed=seed)


def _rows(model: Model, images: np.ndarray) -> Images:
    """Return images as float32 in the model's range; raise a UserError for another shape."""
    images = np.asarray(images)
    if images.shape[1:] != model.image_shape:
        expected = ", ".join(map(str, model.image_shape))
        raise UserError(f"images have shape {list(images.shape)}; expected [image, {expected}].")
    if images.dtype == np.uint8:
        low, high = model.value_range
        images = np.float32(low) + images * np.float32((high - low) / 255)
    count = len(images)
    return Images(np.arange(count), images.astype(np.float32), np.zeros(count, int))


def _write_inputs(
    model: Model,
    params: Params,
    images: tuple[ImageArrays, ImageArrays],
    folder: pathlib.Path,
    sections: Mapping[str, Any],
) -> Config:
    """Write the original model and the images to the workdir, and return the config of a run on them."""
    # Models are dataclasses; the type of their base class does not express it.
    init_fields = [field.name for field in dataclasses.fields(model) if field.init]  # type: ignore[arg-type]
    fields, family = {name: getattr(model, name) for name in init_fields}, FAMILIES.name_of(type(model))
    retain, forget = _write_images(model, images, folder / "images.npz")
    metadata = {"family": family, "model": fields, "origin": "given"}
    save_model(folder / "original", jax.device_get(params), metadata)
    data = {"source": "npz", "path": str(folder / "images.npz"), "validation_fraction": 0.15}
    data |= {"retain": retain, "forget": forget, **sections.get("data", {})}
    given = {"family": family, "pretrained": str(folder / "original"), **fields}
    return parse_config({**sections, "data": data, "model": given})


def _write_images(model: Model, images: Iterable[ImageArrays], path: pathlib.Path) -> list[tuple[str, ...]]:
    """Write both sets to one file and return their class names; a class must not be in both sets."""
    pixels, labels, classes = [], [], []
    for name, given in zip(("retain", "forget"), images, strict=True):
        array, label = given if isinstance(given, tuple) else (given, np.full(len(given), name))
        pixels.append(to_uint8(_rows(model, array).images, model.value_range))
        labels.append(np.asarray(label).astype(str))
        classes.append(tuple(np.unique(labels[-1]).tolist()))
    if both := set(classes[0]) & set(classes[1]):
        raise UserError(f"The label {min(both)!r} is in both retain and forget; give it to one of them.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=np.concatenate(pixels), labels=np.concatenate(labels))
    return classes


def _pictures(config: Config, original: Params, unlearned: Params) -> dict[str, dict[str, np.ndarray]]:
    """Return a few test images of each set: complete, masked, and reconstructed by both models."""
    inpainter = _inpainter(config.model, config.evaluate.tasks[0], config.seed)
    test = evaluation_sets(config.data, open_source(config.data, "test", config.model.image_size))
    pictures = {}
    for name, source in test._asdict().items():
        images = ImageSet(config, source, name)
        chosen = images.read(np.linspace(0, len(images) - 1, min(PICTURES, len(images))).astype(int))
        models = {"original": original, "unlearned": unlearned}
        drawn = {role: inpainter(inpainter.place(params), chosen, name) for role, params in models.items()}
        pictures[name] = {"images": chosen.images, "masked": inpainter.masked(chosen, name), **drawn}
    return pictures
