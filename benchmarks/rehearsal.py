"""Rehearsal of a published config at full size: `python -m benchmarks rehearsal configs/mae.py`.

Everything except the weights is real. Random weights of the model and of the feature networks are written in
the published layouts. The model is imported and unlearned for a few steps on JPEGs, a few images of each set
are inpainted and evaluated, and the report is written with its images. A table shows time and peak memory of
each phase. Flags after `--` are passed to `l2l_jax.main`, such as --config.model.sampling_steps=4.
"""

import argparse
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tabulate import tabulate

from l2l_jax.config import Config, parse_config
from l2l_jax.errors import UserError
from l2l_jax.evals.features.clip import PUBLISHED as TOWERS
from l2l_jax.models.base import FAMILIES

SIDES = (320, 500)
"""Minimum and maximum side of the JPEGs in pixels."""

CLASSES = {"temple": "china.jpg", "flower": "flower.jpg", "mirrored_temple": "china.jpg"}
"""The retain class, the forget class and another class, each made of crops of one photograph."""

RANDOM_WEIGHTS = """
import pathlib, runpy, sys
import jax
from l2l_jax.config import parse_config
from l2l_jax.weights.saved_models import save_model
from l2l_jax.weights.transfer import export_model
path, variant, folder, file = sys.argv[1:]
config = parse_config(runpy.run_path(path)["get_config"](*filter(None, [variant])))
params = jax.device_get(jax.jit(config.model.init)(jax.random.key(0)))
save_model(pathlib.Path(folder), params, {**config.describe("family", "model"), "origin": "random"})
export_model(pathlib.Path(folder), pathlib.Path(file))
"""

PHASES = {
    "pretrain": "loading weights",
    "unlearn": "unlearning",
    "evaluate": "inpainting and evaluation",
}
"""Descriptions of the phases of a run, by their names in its report."""

RANDOM_NETWORK = "import sys; from benchmarks.random_networks import write; write(*sys.argv[1:])"


class Phase(NamedTuple):
    """A finished process: wall-clock time, processor time of all threads, and peak memory in 10⁹ bytes."""

    name: str
    seconds: float
    processor_seconds: float
    gigabytes: float


def main(argv: Sequence[str]) -> None:
    """Rehearse the config named on the command line, print a table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rehearsal", description=__doc__)
    parser.add_argument("config", help="FILE or FILE:VARIANT, such as configs/mae.py")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="of all that is made; default: runs/rehearsal_NAME"
    )
    parser.add_argument("--steps", type=int, default=3, help="unlearning steps (%(default)s)")
    parser.add_argument("--images", type=int, default=8, help="inpainted images per set (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=2, help="images per set in a step (%(default)s)")
    parser.add_argument("--clip", default="ViT-H/14", choices=TOWERS, help="CLIP tower (%(default)s)")
    arguments = list(argv[1:])
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, flags = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    name = pathlib.Path(args.config.partition(":")[0]).stem
    folder = args.folder or pathlib.Path("runs") / f"rehearsal_{name}"
    report = rehearse(args.config, folder, args.steps, args.images, args.batch_size, flags, tower=args.clip)
    print(table(report))
    print(f"\nReport: {folder / 'run' / 'report' / 'report.html'}")


def table(report: Mapping[str, Any]) -> str:
    """Format one line per process, and one per phase of the run."""
    rows = [list(phase.values()) for phase in report["phases"]]
    for name, seconds in report["durations_seconds"].items():
        memory = report["peak_memory_gib_after"][name] * 2**30 / 1e9
        rows.append([f"  of these: {PHASES[name]}", seconds, None, memory])
    return tabulate(
        rows, headers=list(report["phases"][0]), tablefmt="github", floatfmt=("", ".0f", ".0f", ".2f")
    )


# Fields of `config.data` for the folder that `make_jpegs` writes
JPEGS: dict[str, Any] = {"source": "folder", "retain": "temple", "forget": "flower", "general": "rest"}
JPEGS |= {"train_per_class": 0, "test_per_class": 0, "workers": 1}


def rehearse(
    spec: str,
    folder: pathlib.Path,
    steps: int,
    images: int,
    batch_size: int,
    flags: Sequence[str] = (),
    *,
    tower: str = "ViT-H/14",
) -> dict[str, Any]:
    """Run all phases and return the report, which is also written to `folder/rehearsal.json`.

    Args:
      spec: Config as FILE or FILE:VARIANT.
      folder: Folder to create.
      steps: Number of unlearning steps.
      images: Test images per set.
      batch_size: Images per set in a step.
      flags: Additional flags of `l2l_jax.main`.
      tower: CLIP tower, if the config evaluates with CLIP.

    Raises:
      UserError: The folder exists, or a phase failed.
    """
    if folder.exists():
        raise UserError(f"{folder} exists. Choose another --folder, or delete it first.")
    make_jpegs(folder / "jpegs", {"train": max(2 * batch_size, 8), "test": images})
    path, _, variant = spec.partition(":")
    config = parse_config(runpy.run_path(path)["get_config"](*filter(None, [variant])))
    file, imported = folder / "random.safetensors", folder / "imported"
    data = JPEGS | {"path": folder / "jpegs"}
    unlearn = {"steps": steps, "batch_size": batch_size, "warmup_steps": 0, "log_every": 1}
    fields = {f"data.{name}": value for name, value in data.items()}
    fields |= {f"unlearn.{name}": value for name, value in unlearn.items()}
    fields |= {"model.pretrained": imported, "evaluate.batch_size": min(images, 8)}
    networks = {name: folder / f"{name}.safetensors" for name in config.evaluate.networks}
    fields |= {"evaluate.network_batch_size": min(images, 8)}
    fields |= {f"evaluate.{name}": written for name, written in networks.items()}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    run = ["l2l_jax.main", f"--config={spec}", f"--workdir={folder / 'run'}", *overrides, *flags]
    phases = [
        _run("random weights, exported", ["-c", RANDOM_WEIGHTS, path, variant, folder / "random", file]),
        _run("import", ["-m", "l2l_jax.weights", "import", file, "--output", imported, *_hidden(config)]),
        *(
            _run(f"random weights, {name}", ["-c", RANDOM_NETWORK, name, written, tower])
            for name, written in networks.items()
        ),
        _run(f"{steps} steps, {3 * images} images inpainted twice, report", ["-m", *run]),
    ]
    metrics = json.loads((folder / "run/report/metrics.json").read_text())
    report = {
        "config": spec,
        "flags": list(flags),
        "phases": [phase._asdict() for phase in phases],
        **{name: metrics[name] for name in ("durations_seconds", "peak_memory_gib_after", "not_available")},
        "weights_bytes": {weights.stem: weights.stat().st_size for weights in (file, *networks.values())},
    }
    (folder / "rehearsal.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def make_jpegs(folder: pathlib.Path, counts: dict[str, int]) -> None:
    """Write `folder/<split>/<class>/<number>.jpg`: crops of scikit-learn's photographs, `counts` by split."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for name, file in CLASSES.items():
        photograph = load_sample_image(file)[:, :: -1 if name.startswith("mirrored") else 1]
        for split, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(*SIDES, size=2)
                height = min(height, photograph.shape[0])
                top = rng.integers(photograph.shape[0] - height + 1)
                left = rng.integers(photograph.shape[1] - width + 1)
                part = Image.fromarray(photograph[top : top + height, left : left + width])
                part.save(folder / split / name / f"{number:03}.jpg", quality=90)


def _hidden(config: Config) -> list[str]:
    """Return the flags of `weights import` for fields that cannot be inferred from weights."""
    family = FAMILIES[config.family]
    names = dict.fromkeys((*family.FORMATS[0].hidden, *family.TRAINED_WITH))
    return [f"--set={name}={getattr(config.model, name)}" for name in names]


def _run(name: str, arguments: Sequence[Any]) -> Phase:
    """Run a Python process and return its time and memory."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise UserError(f"The phase '{name}' failed (exit status {os.waitstatus_to_exitcode(status)}).")
    unit = 1 if sys.platform == "darwin" else 1024
    return Phase(name, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9)
