"""Comparison of methods: rows, reuse of results between calls, and a diverging method."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from l2l_jax import methods
from l2l_jax.compare.methods import compare, table, variants
from l2l_jax.compare.setup import incompatible
from l2l_jax.experiment import pipeline as experiment
from l2l_jax.methods.encoder import Encoder
from l2l_jax.report import write
from l2l_jax.train.hooks import read_metrics
from tests.fixtures.configs import SMALL, digits_config
from tests.matrix import soak

METHODS = [
    "encoder",
    "max_loss",
    "noisy_label",
    "retain_label",
    "random_encoder",
    "epsilon",
    "whole",
    "undo",
    "relearn_aware",
    "ntk",
]
FEW = ["encoder", "undo"]


def small_config():
    fields = {"data.train_per_class": 20, "data.test_per_class": 10}
    fields |= {"evaluate.picture_per_class": 1, "evaluate.features": "none", "unlearn.log_every": 1}
    for section, steps in (("pretrain.model", 20), ("unlearn", 10)):
        fields |= {f"{section}.steps": steps, f"{section}.batch_size": 8, f"{section}.warmup_steps": 2}
    fields["unlearn.learning_rate"] = 1e-5  # Adam turns rounding errors of a zero gradient into full steps
    return digits_config({**SMALL, **fields})


class Broken(Encoder):
    def objective(self, model):
        plain = super().objective(model)
        return dataclasses.replace(plain, loss=lambda *a: jax.tree.map(lambda x: x * np.nan, plain.loss(*a)))


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module", params=[FEW, soak(METHODS)], ids=["few", "all"])
def compared(request, compiled_once, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = small_config()
    with pytest.MonkeyPatch.context() as patch:
        classes = {name: methods.METHODS[name] for name in request.param}
        patch.setattr(methods.METHODS, "_classes", {**classes, "broken": Broken})
        patch.setattr(write, "draw", lambda *_: {})  # drawing is tested in tests/report
        patch.setattr(write, "page", lambda *_: "")
        report = experiment.run(config, workdir)
        yield workdir, report, compare(config, workdir, alphas=[0.0, config.unlearn.alpha])


@pytest.mark.slow
def test_rows_share_a_model_and_match_the_main_program(compared):
    workdir, report, rows = compared
    rows = dict(rows)
    more = ["encoder, proxy retain", "encoder, alpha 0", "filter", "undo, filter"]
    assert list(rows) == ["original", *methods.METHODS, *more]
    assert rows["original"] == report["original"]
    assert rows["encoder"] == report["unlearned"]
    assert "not finite" in rows["broken"]["failed"] and table(rows).count("diverged") == 1
    # Without a forget term, the student starts at the optimum of the remaining retain term: nothing
    # changes except rounding of the moving average.
    scalars = read_metrics(workdir / "comparison" / "encoder_alpha_0" / "unlearn")
    assert len(scalars) == 10 and all(row["loss"] == row["retain"] < row["forget"] for row in scalars)
    assert scalars[0]["retain"] < 1e-9
    unchanged = rows.pop("encoder, alpha 0")
    for images in ("retain", "forget"):
        assert unchanged[images] == pytest.approx(rows["original"][images], rel=1e-6)
    others = [json.dumps(row) for row in rows.values()]
    assert len(set(others)) == len(others)  # all methods have different results


@pytest.mark.slow
def test_files_have_the_table_and_the_images(compared):
    workdir, _, rows = compared
    folder = workdir / "comparison"
    assert json.loads((folder / "comparison.json").read_text())["rows"] == rows
    lines = (folder / "comparison.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| encoder, proxy retain ")]
    assert f"{rows['encoder, proxy retain']['forget']['mse']:.4f}" in row
    for picture in ("comparison.png", "alphas.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_finished_rows_are_reused_and_changed_rows_recomputed(compared, caplog, monkeypatch):
    workdir, _, rows = compared
    config = small_config()
    with caplog.at_level("INFO", logger="l2l_jax"), monkeypatch.context() as patch:
        patch.setattr("l2l_jax.compare.methods.fit_filter", None)  # a stored filter is reused
        assert compare(config, workdir, alphas=[0.0]) == rows
    assert "step/s" not in caplog.text and "inpaint" not in caplog.text
    monkeypatch.setattr(methods.METHODS, "_classes", {"encoder": methods.METHODS["encoder"]})
    narrower = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, tasks=("centre_4",)))
    again = compare(narrower, workdir)
    assert again["encoder"]["retain"]["mse"] != rows["encoder"]["retain"]["mse"]


def test_methods_incompatible_with_an_adapter_are_skipped():
    """An adapter is added to the original weights; of all methods, "undo" alone starts from others."""
    unlearn = dataclasses.replace(small_config().unlearn, adapter="lora")
    config = dataclasses.replace(small_config(), unlearn=unlearn)
    reasons = {name: incompatible(variant) for name, variant in variants(config, "", [], ["0"])}
    assert [name for name, reason in reasons.items() if reason] == ["undo"]
    assert "starts from others" in reasons["undo"]


def test_rows_without_real_retain_images():
    rows = dict(variants(small_config(), "", [], ["0", "2"], generated=True))
    data = {name: row.data for name, row in rows.items()}
    assert data["encoder, proxy retain"].proxy == ("0", "2")
    assert data["encoder, proxy retain"].retain_images == "real"
    assert data["encoder, generated retain"].retain_images == "generated"
    assert data["encoder, generated retain"].proxy == ()
    assert rows["encoder, generated retain"].unlearn == rows["encoder"].unlearn
