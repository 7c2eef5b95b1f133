"""The command-line program as a user runs it: one process per command."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from l2l_jax.cli.failures import explain
from l2l_jax.data import make_local
from l2l_jax.main import main
from l2l_jax.report import write
from tests.compiling import flags_of_one_device
from tests.utils import forking

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = {"data.workers": 0, "data.max_bad_fraction": 0.1, "evaluate.picture_per_class": 1}
FIELDS |= {"model.width": 16, "model.depth": 1, "model.decoder_width": 16, "model.decoder_depth": 1}
PHASES = ("pretrain.model", "unlearn")
FIELDS |= {f"{phase}.{name}": x for phase in PHASES for name, x in (("steps", 12), ("batch_size", 8))}
FIELDS["unlearn.checkpoint_every"] = 10
SMALL = ["--config=configs/mae.py:runlocal", *(f"--config.{name}={x}" for name, x in FIELDS.items())]


def environment():
    return {**os.environ, "XLA_FLAGS": flags_of_one_device(), forking.DRAWS: "no"}


def run(*arguments):
    return forking.run("-m", "l2l_jax.main", *arguments, env=environment())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir, arguments, output and errors of a run started as by a user; two images are truncated."""
    folder = tmp_path_factory.mktemp("run")
    make_local.make(folder / "pictures", {"train": 20, "val": 10})
    for broken in ("train/flower/0003.jpg", "val/temple/0000.jpg"):
        path = folder / "pictures" / broken
        path.write_bytes(path.read_bytes()[:700])
    arguments = [*SMALL, f"--config.data.path={folder / 'pictures'}", f"--workdir={folder}"]
    kwargs = dict(cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=300)
    done = subprocess.run([sys.executable, "-m", "l2l_jax.main", *arguments], **kwargs)
    assert done.returncode == 0, done.stderr
    return folder, arguments, done.stdout, done.stderr


def test_report_has_the_documented_content(finished):
    workdir, _, output, _ = finished
    report = json.loads((workdir / "report" / "metrics.json").read_text())
    for model in ("original", "unlearned"):
        for split in ("retain", "forget"):
            names = "psnr ssim mse classifier_distance classifier_score classifier_score_std accuracy"
            assert set(report[model][split]) == {*names.split(), "balanced_accuracy"}
            assert np.isfinite(list(report[model][split].values())).all()
            mse = f"{report[model][split]['mse']:.4f}"
            assert re.search(rf"{split} +{model} .*{mse}", output)  # the console has the same value
    assert {"seed", "config", "versions", "device", "durations_seconds", "peak_memory_gib"} <= set(report)
    assert report["config"]["unlearn"]["steps"] == 12
    assert report["device"] == {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1}
    for picture in ("restorations.png", "losses.png"):
        assert (workdir / "report" / picture).read_bytes().startswith(b"\x89PNG")
    (skipped,) = report["test_images"]["retain"]["skipped"]
    assert skipped.endswith("val/temple/0000.jpg") and report["test_images"]["forget"]["skipped"] == {}
    for training, split in (("model", "train"), ("unlearn", "forget")):
        (replaced,) = report["bad_training_images"][training][split]
        assert replaced.endswith("train/flower/0003.jpg")


def test_html_report_is_self_contained_and_progress_is_plain_lines(finished):
    html = (finished[0] / "report" / "report.html").read_text()
    report = json.loads((finished[0] / "report" / "metrics.json").read_text())
    assert html.count("data:image/png;base64,") >= 3
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert f"{report['unlearned']['forget']['classifier_distance']:.2f}" in html
    errors = finished[3]
    assert re.search(r"unlearn 12/12 · \d+ s · .*loss [\d.e-]+", errors)
    assert "\r" not in errors


def test_finished_run_is_not_repeated(finished, one_device, run_here, monkeypatch):
    workdir, arguments, output, _ = finished
    monkeypatch.setattr(write, "draw", lambda *_: {})
    monkeypatch.setattr(write, "page", lambda *_: "")
    before = (workdir / "unlearned" / "model.json").stat().st_mtime_ns
    code, again, errors = run_here(main, *arguments)
    assert code == 0 and "Using the unlearned model" in errors
    assert (workdir / "unlearned" / "model.json").stat().st_mtime_ns == before
    assert again.split("Report")[0] == output.split("Report")[0]


def test_different_run_in_the_workdir_is_rejected(finished, run_here):
    code, _, errors = run_here(main, *finished[1], "--config.unlearn.alpha=0.5")
    assert code == 1 and "config.unlearn.alpha was 0.25 and is now 0.5" in errors
    assert (finished[0] / "unlearned" / "model.json").exists()


FULL = """RESOURCE_EXHAUSTED: Error writing "params/0" in OCDBT database at local file \
"/runs/a/20.orbax-checkpoint-tmp/": No space left on device [os_error_code=28]"""
LARGE = """OUT_OF_RANGE: Error writing local file "/runs/a/3.orbax-checkpoint-tmp/_sharding": File too \
large [os_error_code='EFBIG']"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "runs/a"), "The disk is full: runs/a could"),
        (ValueError(FULL), "The disk is full: /runs/a/20 could"),
        (ValueError(LARGE), "A file is larger than `ulimit -f` or the disk allows: /runs/a/3 could"),
        (OSError(122, "Disk quota exceeded", "runs/a"), "The disk quota is used up: runs/a could"),
        (PermissionError(13, "Permission denied", "runs/a/b"), r"runs/a/b cannot be .* \(Permission"),
        (PermissionError(13, "Permission denied", "m.pth"), r"m.pth cannot be opened \(Permission denied\)"),
    ],
)
def test_disk_errors_are_explained(error, message):
    assert re.match(message, explain(error, pathlib.Path("runs/a")))


def test_other_errors_keep_their_traceback():
    assert explain(ValueError("cannot reshape array")) is None
    assert explain(FileNotFoundError(2, "No such file or directory", "images/a.png")) is None
