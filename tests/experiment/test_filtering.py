"""Filters on the command line: fitting, evaluation, attacks and application."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from l2l_jax.audit.score import UNATTACKED
from l2l_jax.cli.filter import main as program
from l2l_jax.data.arrays import open_digits
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.fast import Filter
from l2l_jax.experiment.filtering import Reader, attack_filter, detection
from tests.audit.models import Memory, remembering
from tests.audit.models import config as memory_config

CONFIG = [
    "--config=digits_mae",
    "--config.data.test_per_class=10",
    "--config.filter.references=20",
    "--config.evaluate.batch_size=64",
    "--config.audit.enabled=False",
]
NETWORK = [*CONFIG, "--config.filter.features=classifier"]


def pictures(folder, digits, size=16):
    source = open_digits("test", size)
    for digit in digits:
        (folder / str(digit)).mkdir(parents=True)
        for index in np.flatnonzero(source.labels == digit)[:20]:
            pixels = np.rint(source[int(index)]["image"] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(digit) / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"), range(10))


def call(run_here, *arguments):
    code, output, errors = run_here(program, *arguments)
    assert code == 0, errors
    return output


@pytest.mark.slow
def test_fit_and_apply_encoder_filter(run_here, one_device, tmp_path, place):
    work, path = f"--workdir={tmp_path / 'run'}", tmp_path / "filter.safetensors"
    output = call(run_here, "fit", *CONFIG, "--config.evaluate.features=none", work, f"--output={path}")
    assert "A filter is not unlearning" in output
    report = json.loads(path.with_suffix(".json").read_text())
    scores = report["scores"]
    caught = {split: np.array(x) > report["threshold"] for split, x in scores.items()}
    assert report["detection"]["recall"][0] == caught["forget"].mean()
    assert report["detection"]["false_alarms"][0] == caught["retain"].mean()
    pairs = np.subtract.outer(scores["forget"], scores["retain"])
    assert report["detection"]["auc"][0] == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert report["passes"]["passing"]["forget images"] == (~caught["forget"]).sum()
    assert caught["forget"].mean() > 0.15 > caught["retain"].mean()

    for action in ("refuse", "blur"):
        folder = tmp_path / action
        printed = call(
            run_here,
            "apply",
            *CONFIG,
            work,
            f"--filter={path}",
            f"--input={place}",
            f"--output={folder}",
            f"--action={action}",
        )
        rows = list(csv.DictReader((folder / "decisions.csv").open()))
        blocked = [row["image"] for row in rows if float(row["score"]) > float(row["threshold"])]
        assert [row["image"] for row in rows if row["decision"] == action] == blocked
        assert f"pass: {len(rows) - len(blocked)}, {action}: {len(blocked)}" in printed
        assert np.mean([name[0] in "56789" for name in blocked]) > 0.6
        for row in rows:
            file = folder / row["image"]
            if row["decision"] == "pass":
                assert file.read_bytes() == (place / row["image"]).read_bytes()
            elif action == "refuse":
                assert not file.exists()
            else:
                before, after = (np.asarray(Image.open(x), float) for x in (place / row["image"], file))
                assert after.std() < 0.9 * before.std() and abs(after.mean() - before.mean()) < 12

    for changed, message in (
        (["--config.seed=0", "--unlearned=digits_mae_retrained"], "There is no model to filter"),
        (["--config.evaluate.tasks=left_8"], "is the filter of another mask"),
    ):
        arguments = [*CONFIG, *changed, work, f"--filter={path}", f"--input={place}", f"--output={tmp_path}"]
        code, _, errors = run_here(program, "apply", *arguments)
        assert code == 1 and message in errors
    other = safetensors.numpy.load_file(path)
    card = json.loads(safetensors.safe_open(path, "numpy").metadata()["l2l_jax filter"])
    metadata = {"l2l_jax filter": json.dumps(card | {"weights": "0" * 64})}
    safetensors.numpy.save_file(other, path, metadata)
    code, _, errors = run_here(
        program, "apply", *CONFIG, work, f"--filter={path}", f"--input={place}", f"--output={tmp_path}"
    )
    assert code == 1 and "is the filter of another model or network" in errors


@pytest.mark.slow
def test_black_box_filter_with_reconstructions_and_folders(run_here, one_device, tmp_path, place):
    path, folders = tmp_path / "filter.safetensors", {}
    for name, digits in (("undesired", "56789"), ("acceptable", "01234")):
        folders[name] = tmp_path / name
        for digit in digits:
            shutil.copytree(place / digit, folders[name] / digit)
    flags = [f"--config.filter.{name}={folder}" for name, folder in folders.items()]
    work = f"--workdir={tmp_path / 'run'}"
    call(run_here, "fit", *NETWORK, *flags, work, f"--output={path}")
    arguments = [f"--filter={path}", f"--input={place}", f"--output={tmp_path / 'out'}"]
    call(run_here, "apply", "--config=digits_mae", work, *arguments)
    rows = list(csv.DictReader((tmp_path / "out" / "decisions.csv").open()))
    scores = {True: [], False: []}
    for row in rows:
        scores[row["image"][0] in "56789"].append(float(row["score"]))
    assert (np.subtract.outer(scores[True], scores[False]) > 0).mean() > 0.7


@pytest.mark.slow
def test_input_attacks_use_the_filtered_model(one_device, tmp_path):
    """A model that remembers other images; the brighter half is rejected, which gives a gray mask."""
    config = dataclasses.replace(memory_config(retrained=()), model=Memory(), seed=0)
    evaluation = Evaluation(config, tmp_path / "evaluation")
    params, tests = remembering(evaluation.train, range(200)), evaluation.tests["forget"]
    reader, mask = Reader(config), evaluation.inpainter.mask
    brightness = reader(params, tests.source, "forget")[0].mean(axis=1)
    direction = np.full(3, 1 / 3, np.float32)
    fitted = Filter(direction, float(np.median(brightness)), {}, {})
    guarded = reader.guard(params, fitted.part())
    report = attack_filter(config, evaluation, tmp_path, params, (reader, guarded), "filtered")
    figures = {r["name"]: r["figures"]["unlearned"]["forget"]["mse"] for r in report["results"]}
    gray = np.square(tests.read(range(len(tests))).images[:, mask] - 0.5).mean(axis=(1, 2))
    errors = evaluation.inpainter.errors(params, tests, "forget")
    expected = np.where(brightness > np.median(brightness), gray, errors)
    (stored,) = tmp_path.glob(f"filtered/{UNATTACKED}/seed_0.npz")
    np.testing.assert_allclose(np.load(stored)["0/forget/mse"].mean(), expected.mean(), rtol=1e-3)
    assert figures[UNATTACKED][0] <= expected.mean()  # calibrated
    assert {"view_noise", "view_gradient"} <= figures.keys()
    assert figures["view_gradient"][0] < figures[UNATTACKED][0]  # a darker image is accepted


def test_recall_precision_and_false_positives_by_hand():
    """Three of four detected, one of eight false positives: with balanced sets, precision is 6/7."""
    scores = {"forget": np.array([0.0, 2, 3, 4]), "retain": np.array([0.5, 0, 0, 0, 0, 0, 0, 9])}
    result = detection(scores, 1.0)
    assert result["recall"][0] == 0.75 and result["false_alarms"][0] == 0.125
    assert result["precision"][0] == pytest.approx(6 / 7)
    # Of the 32 pairs, 0 exceeds none and ties with six; 2, 3 and 4 exceed seven each.
    assert result["auc"][0] == pytest.approx((3 + 3 * 7) / 32)
    assert all(low <= value <= high for value, low, high in result.values())
