"""The audit as a whole: three models, the verdict, what is kept, resumed and refused."""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from l2l_jax.audit import examination
from l2l_jax.audit.conclusions import conclude, seed_spread
from l2l_jax.audit.examination import Examiner
from l2l_jax.audit.run import check_yardstick
from l2l_jax.data.splits import training_sets
from l2l_jax.errors import UserError
from l2l_jax.evals import encoder_features, inpaint
from l2l_jax.evals import evaluator as evaluate
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.experiment import pipeline as experiment
from l2l_jax.report import write as report_files
from l2l_jax.report.text import sentences
from l2l_jax.train.loop import Trainer
from l2l_jax.weights.saved_models import save_model
from tests.audit.models import Memory, config, remembering

TINY = dict(width=8, depth=1, num_heads=2, decoder_width=8, decoder_depth=1, decoder_num_heads=2)
QUICK = dict(steps=4, decoder_steps=1, shot_steps=4, shots=(5,), batch_size=8)
QUICK |= dict(learning_rate=1e-3, shot_learning_rate=1e-3)  # attacks that differ in images alone share a step


@pytest.fixture(scope="module", autouse=True)
def quick(one_device):
    """One device and few points to embed; audits of one configuration share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_features, "EMBEDDED", 10)
        patch.setattr(examination, "training_attacks", functools.cache(examination.training_attacks))
        patch.setattr(examination, "Trainer", functools.cache(Trainer))  # of equal attacks
        restorer = functools.cache(Inpainter)
        for module in (evaluate, inpaint):
            patch.setattr(module, "Inpainter", restorer)
        yield


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def few_tests(settings, count):
    """With so many test images of each class, and batches of half of them."""
    data = dataclasses.replace(settings.data, test_per_class=count)
    evaluate = dataclasses.replace(settings.evaluate, batch_size=5 * count, picture_per_class=1)
    return dataclasses.replace(settings, data=data, evaluate=evaluate)


@pytest.fixture(scope="module")
def memories(tmp_path_factory):
    """Findings on models that remember all training images, those of retain classes, and those but a few."""
    settings = dataclasses.replace(config(attacks=("membership", "views", "linear_probe")), model=Memory())
    settings = few_tests(settings, 20)
    folder = tmp_path_factory.mktemp("memories")
    evaluation = Evaluation(settings, folder / "evaluation")
    training = training_sets(settings.data, evaluation.train, 16)
    everything = range(len(evaluation.train))
    labels = np.asarray(evaluation.train.labels)
    models = {
        "original": remembering(evaluation.train, everything),
        "unlearned": remembering(evaluation.train, np.flatnonzero((labels < 5) | (labels == 5))),
        "retrained": remembering(evaluation.train, np.flatnonzero(labels < 5)),
    }
    examiner = Examiner(settings, evaluation, training, folder / "audit")
    return examiner.examine(models)


FAIR = {
    "origin": "made up", "ratio": [1.0, 0.9, 1.1], "images": "validation", "fair": True, "seeds": None
}  # fmt: skip


@pytest.fixture(scope="module")
def concluded(memories):
    """What the findings come to."""
    return conclude(memories, FAIR)


DIGITS = {"data": {"forget": [5], "retain": ["rest"]}}


def test_a_model_compared_with_itself_has_no_depth_and_the_yardstick_is_as_deep_as_can_be(memories):
    same = conclude({**memories, "unlearned": memories["original"]}, FAIR)
    assert same["verdict"]["finding"] == "not forgotten" and same["verdict"]["sure"]
    never = conclude({**memories, "unlearned": memories["retrained"]}, FAIR)
    assert never["verdict"]["finding"] == "forgotten for good"
    for report, expected in ((same, 0), (never, 1)):
        depths = [d for r in report["results"] for d in r["depth"].values() if d["resolved"]]
        assert len(depths) > 4 and {d["value"] for d in depths} == {expected}
        assert report["membership_depth"]["auc"]["value"] == expected
    assert never["results"][0]["distance"] == {"d": 0, "p": 1}
    assert never["cost"]["mse_ratio"][0] == pytest.approx(
        memories["retrained"]["as_it_lies"]["0"]["retain"]["mse"].mean()
        / memories["original"]["as_it_lies"]["0"]["retain"]["mse"].mean()
    )


def test_figures_are_those_of_the_findings(memories, concluded):
    report, first = concluded, concluded["results"][0]
    measured = memories["unlearned"]["as_it_lies"]["0"]["forget"]
    value, low, high = first["figures"]["unlearned"]["forget"]["mse"]
    assert value == pytest.approx(measured["mse"].mean()) and low < value < high
    original, unlearned, retrained = (
        memories[m]["as_it_lies"]["0"]["forget"]["right"].mean()
        for m in ("original", "unlearned", "retrained")
    )
    expected = (original - unlearned) / (original - retrained)
    assert first["depth"]["accuracy"]["value"] == pytest.approx(expected)
    assert 0 < expected < 1 and report["verdict"]["finding"] != "forgotten for good"
    # What is remembered is found exactly, and only that.
    members = report["membership"]
    assert members["original"]["error"]["auc"][0] > 0.95
    assert members["retrained"]["error"]["auc"][1] < 0.5 < members["retrained"]["error"]["auc"][2]
    assert members["original"]["relative_error"]["auc"][0] >= members["original"]["error"]["auc"][0]
    assert "relative_error" not in members["retrained"]


def test_training_attacks_are_also_held_against_the_original_as_it_lies():
    """400 steps on retain images make the original, too, forget: of .92 it keeps .85."""

    def known(accuracy):
        right = np.arange(200) < 200 * accuracy
        measured = {"mse": np.full(200, 1 - accuracy) + np.arange(200) / 1e4, "right": right}
        return {"retain": measured, "forget": measured}

    accuracies = {"original": (0.92, 0.85), "unlearned": (0.38, 0.8), "retrained": (0.57, 0.61)}
    findings = {
        model: {"as_it_lies": {"0": known(lies)}, "retain_tuning": {"400": known(attacked)}}
        for model, (lies, attacked) in accuracies.items()
    }
    lies, tuned = conclude(findings, FAIR)["results"]
    assert lies["depth"]["accuracy"]["value"] == pytest.approx(0.54 / 0.35)
    assert lies["depth_untouched"] == {}
    assert tuned["depth"]["accuracy"]["value"] == pytest.approx(0.05 / 0.24)
    assert tuned["depth_untouched"]["accuracy"]["value"] == pytest.approx(0.12 / 0.31)


def test_the_seed_of_the_yardstick_counts_where_its_spread_is_known(memories, concluded):
    others = [memories["unlearned"], memories["retrained"]]
    spread = seed_spread(others)
    right = [m["as_it_lies"]["0"]["forget"]["right"].mean() for m in others]
    assert spread["as_it_lies"]["0"]["accuracy"] == pytest.approx(abs(np.diff(right)[0]) / 2**0.5, abs=1e-4)
    seeds = {"count": 2, "spread": {"as_it_lies": spread["as_it_lies"], "retain_tuning": {"77": {}}}}
    narrow, wide = concluded, conclude(memories, {**FAIR, "seeds": seeds})
    for before, after in zip(narrow["results"], wide["results"], strict=True):
        for measure, depth in after["depth"].items():
            assert depth["over_images"] == [before["depth"][measure][end] for end in ("low", "high")]
            if after["name"] == "as_it_lies":
                assert depth["low"] < before["depth"][measure]["low"]
            else:  # nothing is known of so many steps
                assert depth == before["depth"][measure]
    told = [" ".join(sentences({"audit": r, "config": DIGITS})) for r in (narrow, wide)]
    assert "What another seed of the retrained model would change is not known" in told[0]
    assert "over test images and seeds of the retrained model" in told[1]


def test_without_a_yardstick_everything_else_is_there(memories):
    two = {name: memories[name] for name in ("original", "unlearned")}
    report = conclude(two, None)
    assert report["verdict"]["finding"] == "undecided" and report["results"][0]["depth"] == {}
    assert set(report["results"][0]["figures"]) == {"original", "unlearned"}
    same = conclude({**two, "unlearned": memories["original"]}, None)
    assert same["verdict"]["finding"] == "not forgotten"
    said = sentences({"audit": same, "config": DIGITS})
    assert said[1].startswith("Not forgotten") and "no depth is known" in said[-1]


def test_an_unfair_yardstick_is_told(memories):
    report = conclude(memories, {**FAIR, "ratio": [1.6, 1.5, 1.7], "fair": False})
    said = sentences({"audit": report, "config": {"data": {"forget": range(20), "retain": [0]}}})
    assert "9 and 10 more classes" in said[0]
    assert "1.60 times worse" in said[-1] and "not to be trusted" in said[-1]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run with an audit of a tiny model, and its report."""
    workdir = tmp_path_factory.mktemp("run")
    settings = tiny(enabled=True, retrained=str(yardstick(tmp_path_factory.mktemp("yardstick"))))
    save_model(workdir / "original", parameters(0), card(settings))
    settings = dataclasses.replace(settings, pretrained=str(workdir / "original"))
    return workdir, settings, experiment.run(settings, workdir / "run")


def tiny(**audit):
    settings = config(**{**QUICK, **audit})
    unlearn = dataclasses.replace(settings.unlearn, steps=2, batch_size=8, warmup_steps=1)
    model = dataclasses.replace(settings.model, **TINY)
    evaluate = dataclasses.replace(settings.evaluate, features="none")
    return few_tests(dataclasses.replace(settings, model=model, unlearn=unlearn, evaluate=evaluate), 8)


@functools.cache
def parameters(seed):
    return jax.device_get(jax.jit(tiny().model.init)(jax.random.key(seed)))


def card(settings):
    return {**settings.describe("family", "model", "data", "seed"), "origin": "made up"}


def yardstick(folder):
    save_model(folder / "model", parameters(1), card(tiny()))
    return folder / "model"


@pytest.mark.slow
def test_the_report_begins_with_the_verdict(audited):
    workdir, _, report = audited
    html = (workdir / "run/report/report.html").read_text()
    finding = report["audit"]["verdict"]["finding"]
    assert html.index(finding.capitalize()) < html.index("<table")
    names = [result["name"] for result in report["audit"]["results"]]
    assert names == [
        "as_it_lies", "retain_tuning", "relearning_5", "fresh_decoder_retain", "fresh_decoder_all"
    ]  # fmt: skip
    assert [p["step"] for p in report["audit"]["curves"]["retain_tuning"]["unlearned"]] == [0, 1, 2, 4]
    with (workdir / "run/report/metrics.csv").open() as file:
        rows = {tuple(r[k] for k in ("attack", "model", "set", "figure")): r for r in csv.DictReader(file)}
    own = report["retrained"]["forget"]["mse"]
    assert float(rows["", "retrained", "forget", "mse"]["value"]) == own
    attacked = report["audit"]["results"][1]["figures"]["unlearned"]["forget"]["mse"]
    row = rows["retain_tuning", "unlearned", "forget", "mse"]
    assert [float(row[k]) for k in ("value", "low", "high")] == attacked
    # Measured as the evaluation does.
    first = report["audit"]["results"][0]["figures"]
    for model in ("original", "unlearned", "retrained"):
        assert first[model]["forget"]["mse"][0] == pytest.approx(report[model]["forget"]["mse"], rel=1e-5)


@pytest.fixture
def undrawn(audited, monkeypatch):
    """Reports with the pictures of the finished run: drawing them takes longer than the audit."""
    drawn = {path.stem: path for path in (audited[0] / "run/report").glob("*.png")}
    monkeypatch.setattr(report_files, "_draw", lambda *_: drawn)


@pytest.mark.slow
def test_audited_folders_stay_as_they_are_and_finished_attacks_are_read(audited, undrawn, monkeypatch):
    workdir, settings, report = audited
    run = workdir / "run"
    before = {name: digest(run / name) for name in ("unlearned", "unlearn")}
    monkeypatch.setattr(Trainer, "train", None)  # nothing is trained again
    again = experiment.audit(settings, run, run / "unlearned")
    assert {**again["audit"], "seconds": 0} == {**report["audit"], "seconds": 0}
    assert {name: digest(run / name) for name in before} == before
    assert not list(run.glob("audit/**/training"))  # no checkpoints are left


@pytest.mark.slow
def test_an_interrupted_attack_goes_on_and_finds_the_same(audited, undrawn, tmp_path, monkeypatch):
    """Of the finished run one attack on one model is missing; it is stopped on the way."""
    workdir, settings, report = audited
    for folder in ("audit", "evaluation"):
        shutil.copytree(workdir / "run" / folder, tmp_path / folder)
    attacked = tmp_path / "audit/unlearned/retain_tuning"
    shutil.rmtree(attacked)
    original = examination.Meter.tests
    calls = []

    def killed(self, params, title):
        calls.append(title)
        if title == "unlearned, retain_tuning 4":
            raise KeyboardInterrupt
        return original(self, params, title)

    monkeypatch.setattr(examination.Meter, "tests", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.audit(settings, tmp_path, workdir / "run/unlearned")
    assert calls == [f"unlearned, retain_tuning {step}" for step in (1, 2, 4)]
    assert not (attacked / "seed_0" / examination.POINTS).exists()
    monkeypatch.setattr(examination.Meter, "tests", original)
    again = experiment.audit(settings, tmp_path, workdir / "run/unlearned")
    assert {**again["audit"], "seconds": 0} == {**report["audit"], "seconds": 0}


def test_other_models_and_settings_are_attacked_anew(tmp_path):
    found = []

    def attack(params, settings):
        folder = tmp_path / "attack"
        facts = {"parameters": examination.fingerprint(params), **settings}
        found.append(examination._finished(folder, facts))
        (folder / examination.POINTS).touch()

    params = {"encoder": {"w": np.ones((2, 2), np.float32)}}
    for settings in ({"steps": 1}, {"steps": 1}, {"steps": 2}):
        attack(params, settings)
    attack({"encoder": {"w": np.full((2, 2), 2, np.float32)}}, {"steps": 2})
    assert found == [False, True, False, False]


@pytest.mark.parametrize(
    ("retrained", "message"),
    [
        ("nowhere", "config.audit.retrained=nowhere does not exist.*digits_mae_retrained"),
        ("{model}", r"was trained for forget=\[5, 6, 7, 8, 9\], but config.data.forget is \[3\]"),
    ],
)
def test_a_yardstick_that_does_not_fit_is_refused_before_any_work(retrained, message, tmp_path):
    retrained = retrained.format(model=yardstick(tmp_path))
    settings = tiny(enabled=True, retrained=retrained)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, forget=(3,)))
    with pytest.raises(UserError, match=message):
        check_yardstick(settings)


def test_what_is_not_there_cannot_be_audited(tmp_path):
    with pytest.raises(UserError, match="no original model to compare with"):
        experiment.audit(dataclasses.replace(tiny(), pretrained=""), tmp_path, pathlib.Path("unlearned"))


def test_json_holds_no_numbers_that_are_none(concluded):
    text = json.dumps(concluded, allow_nan=False)
    assert json.loads(text)["thresholds"] == {"deep": 0.8, "shallow": 0.5}
