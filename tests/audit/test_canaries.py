"""Canaries: marks that are added before pretraining and detected in reconstructions."""

import dataclasses

import jax
import numpy as np
import pytest

from l2l_jax.audit.bench import Bench
from l2l_jax.audit.canaries import CANARIES, fit, split_sets
from l2l_jax.audit.score import UNATTACKED, Line, conclude
from l2l_jax.config import parse_config, upgrade
from l2l_jax.data.canaries import Marked, covered, mark, paint
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.records import ArraySource
from l2l_jax.data.sources import source_digest
from l2l_jax.data.splits import canaries, open_training, training_sets
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment.pretrain import images_without_forget
from l2l_jax.report.tables import canary_table
from l2l_jax.report.text import details
from tests.audit.models import Memory, config
from tests.report.example import report

COUNT = 10
CONFIG = dataclasses.replace(config(), model=Memory(), pretrained="")
CONFIG = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, canaries=COUNT))


@pytest.mark.parametrize("top", [255, 1.0])
def test_mark_covers_the_middle_half_and_depends_on_the_image(top):
    square = np.full((16, 16, 3), top, np.uint8 if top == 255 else np.float32)
    painted, other = paint(square, 3), paint(square, 4)
    inside = np.zeros((16, 16), bool)
    inside[4:12, 4:12] = True
    np.testing.assert_array_equal(painted[~inside], top)
    dark = (painted[inside] < top).all(-1)
    assert painted.dtype == square.dtype and dark.mean() == 0.5  # half of the cells are bright
    np.testing.assert_allclose(painted[inside][dark], 0.6 * top, rtol=1e-6)
    assert (painted != other).any() and (painted == paint(square, 3)).all() and (square == top).all()
    assert covered(16) == slice(4, 12) and mark(0, 28).shape == (14, 14)


def test_marks_follow_their_images_through_shuffling_crops_and_processes(tmp_path):
    """The gray value of an image is its index; marked ones show their mark where the crop has the middle."""
    gray = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 20, 24, 3), np.uint8)
    source = ArraySource(gray, np.zeros(8), ["all"])
    marked, crop, images = Marked(source, (2, 5)), TransformConfig(crop="random", flip=True), {}
    transforms = {"train": Transform(crop, 16, training=True)}
    for process in (0, 1):
        options = LoaderOptions(tmp_path, process_index=process, process_count=2)
        rows = iter(
            TrainingBatches(
                {"train": marked}, 8, value_range=(0, 1), seed=3, transforms=transforms, options=options
            )
        )
        for image in next(rows)["train"]:
            images[int(image[0, 0, 0])] = image
        rows.close()
    assert sorted(images) == list(range(8))
    for number, image in images.items():
        plain = np.full((16, 16, 3), number, np.uint8)
        np.testing.assert_array_equal(image, paint(plain, number) if number in (2, 5) else plain)
    assert source_digest(marked) != source_digest(source) == source_digest(Marked(source, ()))


def test_fit_matches_correlations_in_numpy():
    rng = np.random.default_rng(0)
    marks, residuals = rng.integers(0, 2, (6, 40)).astype(float), rng.normal(size=(3, 40))
    residuals[0] = 0.3 * marks[4] - 2
    scores, fits = fit(residuals, marks, np.array([4, 0, 1]))
    for row, own in enumerate((4, 0, 1)):
        r = np.array([np.corrcoef(residuals[row], m)[0, 1] for m in marks])
        others = np.delete(r, own)
        assert scores[row] == pytest.approx(-(r[own] - others.mean()) / others.std())
        assert fits[row] == (r[own] > others.max())
    assert fits[0] == 1
    assert (fit(np.ones((2, 40)), marks, np.arange(2))[1] == 0).all()  # nothing reconstructed


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    evaluation = Evaluation(CONFIG, tmp_path_factory.mktemp("canaries"))
    return Bench(CONFIG, evaluation, training_sets(CONFIG.data, evaluation.train, 16))


def painted_images(source):
    records = (source[i] for i in range(len(source)))
    return np.stack([paint(r["image"], r["mark"]) if "mark" in r else r["image"] for r in records])


@pytest.fixture(scope="module")
def models(bench):
    """Models that remember all training images, the retain set, or only gray."""
    everything, kept = (painted_images(s) for s in (bench.evaluation.train, images_without_forget(CONFIG)))
    return {
        name: {"encoder": images}
        for name, images in (
            ("original", everything),
            ("retrained", kept),
            ("constant", np.full((1, 16, 16, 3), 0.5, np.float32)),
        )
    }


def test_marks_are_reconstructed_only_by_models_that_remember(bench, models):
    measured = {name: bench.measure(params, name, ("forget",)) for name, params in models.items()}
    result = {name: split_sets(m[CANARIES]["found"]) for name, m in measured.items()}
    assert {name: sets[0].sum() for name, sets in result["original"].items()} == {"forget": 10, "retain": 10}
    assert result["retrained"]["retain"][0].sum() == 10
    for name, kind in (("retrained", "forget"), ("constant", "forget"), ("constant", "retain")):
        assert result[name][kind][0].sum() <= 2  # by chance one of 40 marks fits best
    assert all(sets[1].sum() <= 2 for by_set in result.values() for sets in by_set.values())  # never planted


def concluded(bench, models, unlearned):
    """The audit of one of the models, and of a model that remembers everything after an attack."""
    names = {"original": "original", "unlearned": unlearned, "retrained": "retrained"}
    findings = {}
    for role, name in names.items():
        attacked = bench.measure(models["original" if role == "unlearned" else name], role)
        plain = bench.measure(models[name], role, ("retain", "forget", "validation"))
        findings[role] = [{UNATTACKED: {"0": plain}, "attack": {"5": attacked}}]
    facts = {"origin": "", "ratio": [1, 1, 1], "images": "test", "fair": True, "seeds": None}
    return conclude(findings, [Line(UNATTACKED, "no attack"), Line("attack", "an attack")], facts)


def test_report_and_verdict_include_reconstructed_marks(bench, models):
    audit = concluded(bench, models, "retrained")
    first, after = audit["canaries"]
    assert (first["count"], after["title"]) == (COUNT, "an attack")
    original, own = (first["models"][role]["forget"] for role in ("original", "unlearned"))
    assert original["auc"][0] == 1 and original["found"] == 10 and own["found"] <= 2
    assert after["models"]["unlearned"]["forget"]["auc"][0] == 1
    assert audit["verdict"]["violated_attacks"] == ["attack"]
    assert {c["measure"] for c in audit["comparisons"]} == {"error", "accuracy"}  # canaries are not required
    rows = canary_table(audit).rows
    assert [row.titles for row in rows] == [("no attack",), ("an attack",)] and len(rows[0].cells) == 6
    assert rows[0].cells[0].value == "1.00 (10)"
    text = " ".join(details({**report(), "audit": audit}))
    assert "Of 10 marks planted in forget images, the unlearned model reconstructs" in text
    remembering = concluded(bench, models, "original")["verdict"]
    assert remembering["finding"] == "not forgotten"


def test_retrained_model_has_only_retain_marks():
    source = open_training(CONFIG.data, 16)
    chosen = canaries(CONFIG.data, source)
    assert all(len(set(indices)) == 2 * COUNT for indices in chosen.values())
    kept = images_without_forget(CONFIG)
    assert sum("mark" in kept[i] for i in range(len(kept))) == COUNT
    assert sum("mark" in source[i] for i in range(len(source))) == 2 * COUNT
    assert jax.tree.map(np.array_equal, chosen, canaries(CONFIG.data, source)) == {
        "forget": True,
        "retain": True,
    }


def test_invalid_canaries_are_rejected():
    with pytest.raises(UserError, match="config.data.canaries marks images before .*model.pretrained=''"):
        parse_config(upgrade(config().describe() | {"data": CONFIG.describe("data")["data"]}))
    many = dataclasses.replace(CONFIG.data, canaries=1000)
    with pytest.raises(UserError, match="takes 2000 images of each set, but there are 5[0-9][0-9] to forget"):
        open_training(many, 16)
