"""End-to-end evaluation: stored observations, PNG files, folders, the program."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from l2l_jax.errors import UserError
from l2l_jax.evals import evaluator as evaluate
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.tables import format_models, metrics_json
from l2l_jax.experiment import evaluation as program
from l2l_jax.models.mae.model import MAE
from l2l_jax.report import plots
from l2l_jax.weights.saved_models import save_model
from tests.fixtures.configs import SMALL, digits_config
from tests.train.families import params_of

pytestmark = pytest.mark.usefixtures("compiled_once")

KEY = jax.random.key(0)  # a MAE samples nothing

DATA = dict(forget=(8,), retain=(0, 1), general=("rest",), general_images=30)
EVALUATE = dict(batch_size=16, picture_per_class=1, features="none")
SETS = {"retain": 91, "forget": 43, "general": 30}  # a quarter of the digits 0 and 1, and of the digit 8


def config(**evaluate):
    sections = {"data": DATA, "evaluate": EVALUATE | evaluate}
    fields = {f"{section}.{name}": x for section, options in sections.items() for name, x in options.items()}
    return digits_config(SMALL | fields)


@pytest.fixture(scope="module")
def params():
    model = config().model
    return [params_of(model, seed) for seed in (0, 1)]


class Killed(BaseException):
    """An exception that is not caught anywhere, like SIGKILL."""


def dies_after(monkeypatch, blocks):
    """Kill the process after inpainting some blocks; return the list of inpainted blocks."""
    inpainted, original_call = [], Inpainter.__call__

    def inpaint(self, params, images, set_name):
        if len(inpainted) == blocks:
            raise Killed
        inpainted.append((set_name, int(images.indices[0])))
        return original_call(self, params, images, set_name)

    monkeypatch.setattr(Inpainter, "__call__", inpaint)
    return inpainted


def test_killed_evaluation_resumes(params, tmp_path, monkeypatch):
    expected = Evaluation(config(), tmp_path / "whole").evaluate(params[0], "original")
    assert {split: len(s) for split, s in Evaluation(config(), tmp_path).tests.items()} == SETS
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies_after(patch, 4)
        Evaluation(config(), tmp_path / "killed").evaluate(params[0], "original")
    with monkeypatch.context() as patch:
        rest = dies_after(patch, None)
        again = Evaluation(config(), tmp_path / "killed").evaluate(params[0], "original")
    blocks = [(split, first) for split, count in SETS.items() for first in range(0, count, 16)]
    assert rest == blocks[4:]
    assert again.tasks == expected.tasks
    for split in SETS:
        np.testing.assert_array_equal(again.shown[split], expected.shown[split])
    with monkeypatch.context() as patch:
        other = dies_after(patch, None)
        changed = Evaluation(config(), tmp_path / "killed").evaluate(params[1], "original")
    assert len(other) == len(blocks) and changed.metrics != expected.metrics


class Mirroring(MAE):
    def alternatives(self):
        return {"prompt a/b": Mirrored(**self.as_fields())}


class Mirrored(MAE):
    def inpaint(self, params, images, mask, rng):
        return super().inpaint(params, images[:, :, ::-1], mask, rng)[:, :, ::-1]


def test_alternative_ways_to_run_a_model_are_reported(params, tmp_path):
    setup = dataclasses.replace(config(), model=Mirroring(**config().model.as_fields()))
    evaluation = Evaluation(setup, tmp_path)
    result = evaluation.evaluate(params[0], "m")
    assert list(result.tasks) == ["centre_8", "centre_8_prompt_a_b"]
    images = evaluation.tests["forget"].read(np.arange(43)).images
    inpaint = jax.jit(lambda x: setup.model.inpaint(params[0], x, evaluation.inpainter.mask, KEY))
    mirrored = np.asarray(inpaint(images[:, :, ::-1]))[:, :, ::-1]
    expected = np.mean((mirrored - images)[:, evaluation.inpainter.mask] ** 2)
    measured = result.tasks["centre_8_prompt_a_b"].sets["forget"].metrics["mse"]
    assert measured == pytest.approx(float(expected), rel=1e-5)
    assert measured != pytest.approx(result.metrics["forget"]["mse"], rel=1e-3)
    assert "centre 8/16, prompt a/b" in format_models(metrics_json(evaluation, {"m": result}))


def test_metrics_match_the_pixels_for_any_batch_size(params, tmp_path):
    evaluation = Evaluation(config(tasks=("centre_8", "random_75")), tmp_path / "16")
    result = evaluation.evaluate(params[0], "m")
    other = Evaluation(config(batch_size=64, tasks=("random_75",)), tmp_path / "64").evaluate(params[0], "m")
    for split in SETS:
        first, second = (x.tasks["random_75"].sets[split].metrics for x in (result, other))
        assert first == pytest.approx(second, rel=1e-5) and set(first) == {"psnr", "ssim", "mse"}
    originals = evaluation.tests["forget"].read(np.arange(43)).images
    mask = evaluation.inpainter.mask
    inpaint = jax.jit(lambda params, images, key: config().model.inpaint(params, images, mask, key))
    restored = np.asarray(inpaint(params[0], originals, jax.random.key(0)))
    mse = np.square(restored - originals)[:, mask].mean(axis=(1, 2))
    figures = result.metrics["forget"]
    assert figures["mse"] == pytest.approx(mse.mean(), rel=1e-5)
    assert figures["psnr"] == pytest.approx((10 * np.log10(1 / mse)).mean(), rel=1e-5)
    low, high = result.first.sets["forget"].intervals["mse"]
    assert low < mse.mean() < high
    indices = evaluation.shown["forget"].indices
    np.testing.assert_allclose(result.shown["forget"], restored[indices], atol=1e-5)
    random = result.tasks["random_75"].sets["forget"].metrics
    assert random["mse"] != pytest.approx(figures["mse"], rel=0.01)


def test_classifier_accuracy_and_metrics_per_class(params, tmp_path):
    evaluation = Evaluation(config(features="classifier"), tmp_path)
    outcome = evaluation.evaluate(params[0], "m")
    own = {name: real["balanced_accuracy"] for name, real in outcome.first.real_images.items()}
    assert own["retain"] > 0.9
    classes = {name: result.classes for name, result in outcome.first.sets.items()}
    assert set(classes["retain"]) == {"0", "1"} and set(classes["forget"]) == {"8"}
    assert classes["forget"]["8"]["mse"] == pytest.approx(outcome.metrics["forget"]["mse"])
    images = evaluation.shown["forget"]
    predicted = evaluation.predicted_classes(images.images)
    assert predicted.shape == images.labels.shape and set(predicted) <= {0, 1, 8}


@pytest.fixture(scope="module")
def evaluated(params, compiled_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    card = {**config().describe("family", "model", "data", "seed"), "origin": "a test"}
    for name, values in zip(("pretrained", "unlearned"), params, strict=True):
        save_model(folder / name, values, card)
    return folder, program.evaluate_models(config(write_images=True), folder)


def test_program_writes_metrics_tables_and_images(evaluated):
    folder, report = evaluated[0] / "evaluation", evaluated[1]
    assert json.loads((folder / "figures.json").read_text()) == json.loads(json.dumps(report))
    table = (folder / "figures.md").read_text()
    unlearned = report["tasks"]["centre_8"]["unlearned"]["general"]
    assert f"{unlearned['figures']['psnr']:.2f} ± " in table and "centre 8/16" in table
    assert "accuracy: not available: config.evaluate.features is 'none'" in table
    for split, count in SETS.items():
        kinds = ("original", "centre_8/original", "centre_8/unlearned")
        names = [{path.name for path in (folder / "images" / split / kind).iterdir()} for kind in kinds]
        assert names[0] == names[1] == names[2] and len(names[0]) == count
    assert (folder / "images" / "forget" / "original" / "00042-8.png").exists()


def test_compare_folders_without_a_model(evaluated, tmp_path):
    """With the PNG files of the program, metrics agree up to rounding to 8 bits."""
    images = evaluated[0] / "evaluation" / "images" / "retain"
    actual = program.evaluate_folders(images / "centre_8/original", images / "original", tmp_path)
    assert actual["images"]["count"] == actual["reference"]["count"] == 91
    expected = evaluated[1]["tasks"]["centre_8"]["original"]["retain"]["figures"]
    assert actual["figures"]["ssim"] == pytest.approx(expected["ssim"], abs=2e-3)
    # The mask is a quarter of the image; the rest is unchanged.
    assert actual["figures"]["mse"] == pytest.approx(expected["mse"] / 4, rel=0.01)
    pairs = [
        [np.asarray(Image.open(path), float) / 255 for path in sorted((images / kind).iterdir())]
        for kind in ("centre_8/original", "original")
    ]
    by_hand = np.mean([np.square(a - b).mean() for a, b in zip(*pairs, strict=True)])
    assert actual["figures"]["mse"] == pytest.approx(by_hand, rel=1e-4)


def test_folders_with_different_names_and_sizes(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    rng = np.random.default_rng(0)
    for folder, names, size in zip(folders, ("xyz", "xyw", "xyz"), (16, 16, 20), strict=True):
        folder.mkdir()
        for name in names:
            Image.fromarray(rng.integers(0, 256, (size, 16, 3), np.uint8)).save(folder / f"{name}.png")
    result = program.evaluate_folders(folders[0], folders[1], tmp_path / "out")
    assert result["figures"] == {} and "in one only: 2, such as w" in result["not_available"]["psnr"]
    with pytest.raises(UserError, match="x.png has 16×16 pixels and its original 16×20"):
        program.evaluate_folders(folders[0], folders[2], tmp_path / "out")


def test_missing_models_are_errors(evaluated, tmp_path):
    with pytest.raises(UserError, match="There is no original model: .* Run `python -m l2l_jax.main`"):
        program.evaluate_models(config(), tmp_path)
    given = dataclasses.replace(config(), pretrained=str(evaluated[0] / "pretrained"))
    with pytest.raises(UserError, match="There is no unlearned model: .* Name it with --unlearned"):
        program.evaluate_models(given, tmp_path)


class MeanColor:
    """A network with channel means as features, which counts its input images."""

    name, weights = "mean color", {"sha256": "0"}

    def __init__(self):
        self.shown = 0

    def __call__(self, images):
        self.shown += len(images)
        return {"features": images.mean(axis=(1, 2)).astype(np.float32) + np.arange(3, dtype=np.float32)}


def test_networks_use_the_stored_images_and_originals_only_once(params, tmp_path, monkeypatch):
    network, why = MeanColor(), "inception.pth, published elsewhere, is not there"
    monkeypatch.setattr(evaluate, "open_networks", lambda config: ({"clip": network}, {"fid": why}))
    tasks = ("centre_8", "left_8")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "open_networks", lambda config: ({}, {}))
        earlier = Evaluation(config(write_images=True, tasks=tasks), tmp_path)
        without = {name: earlier.evaluate(values, name) for name, values in zip("ab", params, strict=True)}
    dies_after(monkeypatch, 0)  # a network added later uses the files, without inpainting again
    evaluation = Evaluation(config(write_images=True, tasks=tasks), tmp_path)
    results = {name: evaluation.evaluate(values, name) for name, values in zip("ab", params, strict=True)}
    assert results["b"].metrics["forget"].items() > without["b"].metrics["forget"].items()
    count = sum(SETS.values())
    assert network.shown == count + 2 * 2 * count  # originals once; two models at two tasks
    assert evaluation.missing["fid"] == why
    folder = tmp_path / "images" / "forget"
    files = [sorted((folder / kind).iterdir()) for kind in ("original", "left_8/b")]
    first, second = (
        np.array([np.asarray(Image.open(file), float).mean(axis=(0, 1)) + [0, 1, 2] for file in kind])
        for kind in files
    )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = ((first * second).sum(axis=1) / lengths).mean()
    figures = results["b"].tasks["left_8"].sets["forget"].metrics
    assert figures["clip_cosine"] == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(plots, "PROJECTED", 5)
    plots.save_tsne(tmp_path / "tsne.png", evaluation, ["a", "b"], "left_8")
    groups = json.loads((tmp_path / "tsne.json").read_text())
    assert {name: len(rows) for name, rows in groups.items()} == {
        f"{split}, {kind}": 5 for split in SETS for kind in ("images", "a", "b")
    }
