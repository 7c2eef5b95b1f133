"""End-to-end audits of models with known memory: verdict, stored results, resuming, and errors."""

import csv
import dataclasses
import functools
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from l2l_jax.audit import bench
from l2l_jax.audit.comparison import MARGINS
from l2l_jax.audit.run import Audit
from l2l_jax.audit.score import UNATTACKED, Line, best_points, conclude, seed_spread
from l2l_jax.data.splits import training_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment import pipeline as experiment
from l2l_jax.experiment.gold_standard import check_gold_standard
from l2l_jax.report import write as report_files
from l2l_jax.report.tables import depth_table, evidence_table
from l2l_jax.train.loop import Trainer
from l2l_jax.weights.saved_models import save_model
from tests.audit.models import Memory, remembering
from tests.fixtures.configs import SMALL, digits_config
from tests.train.families import params_of

SAME = dict(steps=2, batch_size=8, learning_rate=1e-3)  # attacks that differ only in images share a step
QUICK = dict(
    attacks=("retain_tuning", "weight_noise"), retain_tuning=SAME, weight_noise=dict(levels=(0.1,), **SAME)
)
"""Training of the other attacks is covered in test_attacks.py."""


@pytest.fixture(scope="module", autouse=True)
def quick(compiled_once):
    """Use one device and one inpainting program."""


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def memories(tmp_path_factory):
    """Findings for models that remember all training images, the retain set, or the retain set and a few."""
    fields = {"audit.attacks": ("membership", "linear_probe", "residual_knowledge")}
    fields |= {"data.test_per_class": 20, "data.train_per_class": 40, "evaluate.batch_size": 100}
    settings = dataclasses.replace(digits_config(fields), model=Memory())
    folder = tmp_path_factory.mktemp("memories")
    evaluation = Evaluation(settings, folder / "evaluation")
    training = training_sets(settings.data, evaluation.train, 16)
    labels = np.asarray(evaluation.train.labels)
    models = {
        "original": remembering(evaluation.train, range(len(labels))),
        "unlearned": remembering(evaluation.train, np.flatnonzero(labels <= 5)),
        "retrained": remembering(evaluation.train, np.flatnonzero(labels < 5)),
    }
    runner = Audit(settings, evaluation, training, folder / "audit")
    return runner.run(models), runner.lines


FAIR = {"origin": "made up", "ratio": [1.0, 0.9, 1.1], "images": "validation", "fair": True, "seeds": None}


def concluded(memories, unlearned, retrained=("retrained",), facts=FAIR):
    findings, lines = memories
    roles = {"original": ["original"], "unlearned": [unlearned], "retrained": retrained}
    return conclude({role: [findings[n] for n in names] for role, names in roles.items()}, lines, facts)


def test_verdicts_of_original_and_retrained_model(memories):
    same = concluded(memories, "original")
    assert same["verdict"]["finding"] == "not forgotten"
    never = concluded(memories, "retrained")
    assert never["verdict"]["finding"] in ("forgotten", "undecided")  # 100 images are few for a margin 0.05
    for report, expected in ((same, 0), (never, 1)):
        depths = [d for r in report["results"] for d in r["depth"].values() if d["resolved"]]
        assert len(depths) > 3 and {d["value"] for d in depths} == {expected}
    assert {c["excess"] for c in never["comparisons"]} == {0}
    assert never["results"][0]["distance"] == {"d": 0, "p": 1} and not never["verdict"]["little_to_forget"]
    little = concluded(memories, "retrained", ("original",))
    assert little["verdict"]["little_to_forget"]


def test_report_metrics_match_the_findings(memories):
    report, findings = concluded(memories, "unlearned"), memories[0]
    first = report["results"][0]
    measured = findings["unlearned"][UNATTACKED]["0"]["forget"]
    value, low, high = first["figures"]["unlearned"]["forget"]["mse"]
    assert value == pytest.approx(measured["error"].mean()) and low < value < high
    own, never = (findings[m][UNATTACKED]["0"]["forget"]["credit"].mean() for m in ("unlearned", "retrained"))
    by_measure = {c["measure"]: c for c in report["comparisons"] if c["name"] == UNATTACKED}
    assert by_measure["accuracy"]["excess"] == pytest.approx(own - never)
    assert report["verdict"]["finding"] != "forgotten"  # the model remembers one class
    before, after = (findings[m][UNATTACKED]["0"]["retain"]["mse"].mean() for m in ("original", "unlearned"))
    assert report["cost"]["mse_ratio"][0] == pytest.approx(after / before)
    members = report["membership"]
    assert members["original"]["relative_error"]["auc"][0] >= members["original"]["error"]["auc"][0] > 0.9
    assert "relative_error" not in members["retrained"]
    assert report["residual_knowledge"]["unlearned"]["ratio"] == [None] * 3  # the retrained model has none
    json.dumps(report, allow_nan=False)


def test_residual_knowledge_is_relative_to_the_retrained_model(memories):
    findings, lines = memories
    shares = {"original": 0.5, "unlearned": 0.3, "retrained": 0.2}
    for model, share in shares.items():
        right = np.where(np.arange(100) < 50, 2 * share, 0.0)
        changed = {"0": {"forget": {**findings[model]["residual_knowledge"]["0"]["forget"], "right": right}}}
        findings = {**findings, model: {**findings[model], "residual_knowledge": changed}}
    found = concluded((findings, lines), "unlearned")["residual_knowledge"]
    assert found["unlearned"]["ratio"][0] == pytest.approx(1.5) and found["unlearned"]["above"] == 0.5
    assert found["original"]["ratio"][0] == pytest.approx(2.5)


def measured(accuracy, mse=None):
    classes = np.arange(200) % 2
    errors = np.full(200, 1 - accuracy if mse is None else mse) + np.arange(200) / 1e4
    return {"error": errors, "right": np.arange(200) < 200 * accuracy, "label": classes}


def test_best_attack_step_is_selected_on_validation_images():
    """Step 0 is included; the test metrics of that step are reported, even if another step is better."""
    curve = {"1": (0.5, 0.9), "2": (0.7, 0.4), "3": (0.6, 0.99)}
    points = {step: {"validation": measured(v), "forget": measured(t)} for step, (v, t) in curve.items()}
    findings = {UNATTACKED: {"0": {"validation": measured(0.55), "forget": measured(0.1)}}, "a": points}
    best = best_points(findings, Line("a", "a", is_curve=True))
    assert best["accuracy"].point == best["error"].point == "2"
    assert best["accuracy"].sample[0].mean() == pytest.approx(0.4)
    findings[UNATTACKED]["0"]["validation"] = measured(0.8)
    assert best_points(findings, Line("a", "a", is_curve=True))["error"].point == "0"
    assert best_points(findings, Line("a", "a"))["error"].point == "2"


def test_no_accuracy_with_a_single_forget_class():
    one = {**measured(0.5), "label": np.zeros(200, int)}
    findings = {UNATTACKED: {"0": {"validation": one, "forget": one}}}
    assert list(best_points(findings, Line(UNATTACKED, ""))) == ["error"]


def test_seeds_of_the_retrained_model_widen_the_margins(memories):
    findings, lines = memories
    spread = seed_spread([findings["unlearned"], findings["retrained"]], lines)
    means = [findings[m][UNATTACKED]["0"]["forget"]["error"].mean() for m in ("unlearned", "retrained")]
    expected = abs(np.diff(np.log(means))[0]) / 2**0.5
    assert spread[UNATTACKED]["error"] == pytest.approx(expected, abs=1e-4)
    known = {**FAIR, "seeds": {"count": 2, "spread": spread}}
    wide = concluded(memories, "unlearned", facts=known)["comparisons"][0]
    assert wide["margin"] > concluded(memories, "unlearned")["comparisons"][0]["margin"]
    several = concluded(memories, "unlearned", ("retrained", "unlearned"))
    assert several["comparisons"][0]["margin"] > MARGINS["error"]
    # Each of two models differs from their mean by half their distance; the variance is half its square.
    for name, own, other in (("forget", 0.25, 1), ("retain", 0, 0)):  # both remember the same retain images
        values = several["results"][0]["klom"][name]
        assert [values[role][0] for role in ("unlearned", "retrained")] == pytest.approx([own, other])
    assert "retain" not in several["results"][1]["klom"]
    assert depth_table(several).headings[-3:] == ("KLoM,\noriginal", "KLoM,\nunlearned", "KLoM,\nretrained")
    assert "KLoM of retain images" in evidence_table(several).text()


def test_without_a_retrained_model_the_original_is_the_reference(memories):
    report = concluded(memories, "unlearned", (), None)
    assert report["verdict"]["finding"] == "undecided" and report["reference"] == "original"
    assert set(report["results"][0]["figures"]) == {"original", "unlearned"}
    assert report["results"][0]["depth"] == {} and report["comparisons"][0]["excess"] < 0
    same = concluded(memories, "original", (), None)
    assert same["verdict"]["finding"] == "not forgotten"


def tiny(fields=(), **audit):
    """A model without memory, and few test images, in two batches."""
    few = {"data.test_per_class": 8, "evaluate.batch_size": 40, "evaluate.picture_per_class": 1}
    few |= {
        "evaluate.features": "none",
        "unlearn.steps": 2,
        "unlearn.batch_size": 8,
        "unlearn.warmup_steps": 1,
    }
    audits = {f"audit.{name}": value for name, value in {**QUICK, **audit}.items()}
    return digits_config({**SMALL, "model.pretrained": "digits_mae", **few, **audits, **dict(fields)})


@functools.cache
def parameters(seed):
    return params_of(tiny().model, seed)


def saved(folder, seed):
    settings = tiny()
    card = {**settings.describe("family", "model", "data", "seed"), "origin": "made up"}
    save_model(folder, parameters(seed), card)
    return str(folder)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    retrained = [saved(workdir / f"retrained_{i}", i) for i in (1, 2)]
    original = {"model.pretrained": saved(workdir / "original", 0)}
    settings = tiny(original, enabled=True, retrained=retrained)
    with pytest.MonkeyPatch.context() as patch:  # drawing is tested in tests/report
        patch.setattr(report_files, "draw", lambda *_: {})
        patch.setattr(report_files, "page", lambda *_: "")
        yield workdir, settings, experiment.run(settings, workdir / "run")


@pytest.mark.slow
def test_report_has_the_metrics_of_the_attacks(audited):
    workdir, settings, report = audited
    names = [result["name"] for result in report["audit"]["results"]]
    assert names == [UNATTACKED, "retain_tuning", "weight_noise", "weight_noise_tuning"]
    assert [p["step"] for p in report["audit"]["curves"]["retain_tuning"]["unlearned"]] == [0, 1, 2]
    with (workdir / "run/report/metrics.csv").open() as file:
        rows = {tuple(r[k] for k in ("attack", "model", "set", "figure")): r for r in csv.DictReader(file)}
    own = report["retrained"]["forget"]["mse"]
    assert float(rows["", "retrained", "forget", "mse"]["value"]) == own
    attacked = report["audit"]["results"][1]["figures"]["unlearned"]["forget"]["mse"]
    row = rows["retain_tuning", "unlearned", "forget", "mse"]
    assert [float(row[k]) for k in ("value", "low", "high")] == attacked
    first = report["audit"]["results"][0]["figures"]
    for model in ("original", "unlearned"):
        stored = np.load(workdir / f"run/audit/{model}/{UNATTACKED}/seed_0.npz")
        assert stored["0/forget/mse"].mean() == pytest.approx(report[model]["forget"]["mse"], rel=1e-5)
        assert first[model]["forget"]["mse"][0] == pytest.approx(stored["0/forget/error"].mean())
    assert report["audit"]["yardstick"]["count"] == 2
    assert report["class_names"]["forget"] == list("56789")


@pytest.mark.slow
def test_finished_attacks_are_reused_and_metrics_survive_drawing_errors(audited, monkeypatch):
    workdir, settings, report = audited
    run = workdir / "run"
    before = {name: contents(run / name) for name in ("unlearned", "unlearn")}
    monkeypatch.setattr(Trainer, "train", None)  # nothing is trained again
    monkeypatch.setattr(report_files, "draw", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="cannot be drawn .ZeroDivisionError.*same command to try again"):
        experiment.audit(settings, run, run / "unlearned")
    again = json.loads((run / "report" / "metrics.json").read_text())
    report = json.loads(json.dumps(report))
    assert {**again["audit"], "seconds": 0} == {**report["audit"], "seconds": 0}
    assert again["durations_seconds"]["audit"] == report["durations_seconds"]["audit"]
    assert {name: contents(run / name) for name in before} == before
    assert not list(run.glob("audit/**/checkpoints"))  # no checkpoints are left


@pytest.mark.slow
def test_interrupted_attack_resumes_with_the_same_result(audited, tmp_path, monkeypatch):
    """One attack on one model is removed from a finished run; its rerun is interrupted."""
    workdir, settings, report = audited
    for folder in ("audit", "evaluation"):
        shutil.copytree(workdir / "run" / folder, tmp_path / folder)
    attacked = tmp_path / "audit/unlearned/retain_tuning"
    shutil.rmtree(attacked)
    original, calls = bench.Bench.measure, []

    def killed(self, params, title, *sets):
        calls.append(title)
        if title == "unlearned, retain_tuning 2":
            raise KeyboardInterrupt
        return original(self, params, title, *sets)

    monkeypatch.setattr(bench.Bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.audit(settings, tmp_path, workdir / "run/unlearned")
    assert calls == [f"unlearned, retain_tuning {step}" for step in (1, 2)]
    assert not (attacked / "seed_0.npz").exists()
    monkeypatch.setattr(bench.Bench, "measure", original)
    again = experiment.audit(settings, tmp_path, workdir / "run/unlearned")
    assert {**again["audit"], "seconds": 0} == {**report["audit"], "seconds": 0}


@pytest.mark.parametrize(
    ("retrained", "message"),
    [
        ("nowhere", "config.audit.retrained=nowhere does not exist.*digits_mae_retrained"),
        ("{model}", r"was trained for forget=.*, but config.data.forget is .*3"),
    ],
)
def test_mismatched_model_is_rejected_before_any_work(retrained, message, tmp_path):
    retrained = retrained.format(model=saved(tmp_path / "model", 1))
    settings = tiny({"data.forget": ("3",)}, enabled=True, retrained=retrained)
    with pytest.raises(UserError, match=message):
        check_gold_standard(settings, tmp_path)


def test_retrained_model_of_another_length_is_rejected_before_any_work(tmp_path):
    settings = tiny({"model.pretrained": ""}, retrained="train")
    check_gold_standard(settings, tmp_path)
    (tmp_path / "retraining" / "pretrained").mkdir()
    check_gold_standard(settings, tmp_path)
    longer = {name: dataclasses.replace(x, steps=x.steps + 1) for name, x in settings.pretrain.items()}
    longer = dataclasses.replace(settings, pretrain=longer)
    for redo, hint in ((False, "--redo to replace"), (None, "or delete")):
        with pytest.raises(UserError, match=rf"config.pretrain.model.steps was .* and is now .*{hint}"):
            check_gold_standard(longer, tmp_path, redo=redo)
    check_gold_standard(longer, tmp_path, redo=True)


def test_missing_inputs_of_an_audit_are_named(tmp_path):
    with pytest.raises(UserError, match="validation_fraction is 0"):
        check_gold_standard(tiny({"data.validation_fraction": 0.0}, retrained="train"), tmp_path)
    with pytest.raises(UserError, match="no original model to compare with"):
        experiment.audit(tiny({"model.pretrained": ""}), tmp_path, pathlib.Path("unlearned"))


def test_missing_retrained_model_is_reported_with_the_flag(caplog, tmp_path):
    logging.getLogger("l2l_jax").propagate = True
    check_gold_standard(tiny({"model.pretrained": "elsewhere"}, retrained="shipped"), tmp_path)
    assert "--config.audit.retrained=train" in caplog.text
