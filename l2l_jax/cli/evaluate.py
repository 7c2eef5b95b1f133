"""Evaluate models: `python -m l2l_jax.evaluate --config=configs/vqgan.py --tasks=paper`.

The models are those of a finished run in its workdir, or those named by --config.model.pretrained and
--unlearned. To compare two folders of images without a model:

    python -m l2l_jax.evaluate --images=RECONSTRUCTIONS --reference=ORIGINALS
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import load_config, parse_flags, show, together
from l2l_jax.cli.unlearned_flag import UNLEARNED
from l2l_jax.config_files import override
from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import check_backend

TASKS = flags.DEFINE_list(
    "tasks", [], "Masks, e.g. centre_8,border_3,random_75 or paper; overrides config.evaluate.tasks."
)
IMAGES = flags.DEFINE_string("images", None, "Folder of reconstructions to compare with --reference.")
REFERENCE = flags.DEFINE_string("reference", None, "Folder of the originals of --images.")


def main(argv: Sequence[str]) -> None:
    """Evaluate the models or folders given on the command line and print tables."""
    raw, workdir = parse_flags(argv, needs_config=lambda: IMAGES.value is None and REFERENCE.value is None)
    _check_flags()
    if raw and TASKS.value:
        raw = override(raw, {"evaluate.tasks": tuple(TASKS.value)})
    config = load_config(raw) if raw else None
    check_backend()
    # Imported late to report a mistyped flag immediately.
    from l2l_jax.evals import tables
    from l2l_jax.experiment.evaluation import evaluate_folders, evaluate_models

    folder = workdir / "evaluation"
    if config is None or IMAGES.value:
        images, reference = pathlib.Path(IMAGES.value or ""), pathlib.Path(REFERENCE.value or "")
        text = tables.format_folders(evaluate_folders(images, reference, folder, config))
    else:
        unlearned = pathlib.Path(UNLEARNED.value) if UNLEARNED.value else None
        text = tables.format_models(evaluate_models(config, workdir, unlearned))
    show(f"{text}\n\nMetrics: {folder / 'figures.json'}")


@together()
def _check_flags() -> None:
    given = [flag.value for flag in (IMAGES, REFERENCE) if flag.value is not None]
    if given and not (len(given) == 2 and all(given)):
        raise UserError("--images=RECONSTRUCTIONS and --reference=ORIGINALS go together: give both.")
    if IMAGES.value is not None and (TASKS.value or UNLEARNED.value):
        raise UserError("--tasks and --unlearned are for models, but --images compares folders: give one.")
