"""The Python API as used in a notebook."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

import l2l_jax
from l2l_jax.audit.attacks.base import ATTACKS
from l2l_jax.methods import METHODS
from l2l_jax.models.base import FAMILIES
from l2l_jax.report import write

PLUGINS = pathlib.Path(__file__).parents[1] / "examples" / "plugins.py"
pytestmark = pytest.mark.usefixtures("compiled_once")

RNG = np.random.default_rng(0)
DARK = RNG.integers(0, 100, (40, 8, 8, 3), np.uint8)
BRIGHT = RNG.integers(150, 256, (30, 8, 8, 3), np.uint8)
TRAINING = dict(steps=4, batch_size=8, learning_rate=1e-3, budget_images=4)
EVALUATION = dict(features="none", batch_size=8)


@pytest.fixture(scope="module")
def model():
    """A user-defined family that compiles quickly; registrations of the example are undone."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (ATTACKS, FAMILIES, METHODS):
            patch.setattr(registry, "_classes", dict(registry._classes))
        patch.setattr(write, "draw", lambda *_: {})  # drawing is tested in tests/report
        patch.setattr(write, "page", lambda *_: "")
        yield runpy.run_path(str(PLUGINS))["Blur"](image_size=8)


@pytest.fixture(scope="module")
def params(model):
    return jax.device_get(jax.jit(model.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def result(model, params, compiled_once, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("api"))
    return l2l_jax.unlearn(
        model, params, DARK, BRIGHT, workdir=folder, unlearn=TRAINING, evaluate=EVALUATION, seed=1
    )


def test_unlearn_model_from_arrays(params, result):
    assert result.params["encoder"].keys() == params["encoder"].keys()
    assert result.metrics["test_images"]["retain"]["count"] == 8  # 20% of 40
    assert result.metrics["test_images"]["forget"]["count"] == 6
    assert (result.workdir / "report" / "report.html").is_file()
    retain = result.pictures["retain"]
    assert retain["unlearned"].shape == (8, 8, 8, 3)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    np.testing.assert_array_equal(retain["unlearned"][:, ~mask], retain["images"][:, ~mask])
    error = np.square(retain["unlearned"] - retain["images"])[:, mask].mean()
    assert error == pytest.approx(result.metrics["unlearned"]["retain"]["mse"], rel=1e-5)


def test_load_finished_run_with_its_sizes(model, params, result):
    again = l2l_jax.unlearn(
        model, params, DARK, BRIGHT, workdir=result.workdir, unlearn=TRAINING, evaluate=EVALUATION, seed=1
    )
    assert again.metrics["unlearned"] == result.metrics["unlearned"]
    loaded, params = l2l_jax.load(str(result.workdir / "unlearned"))
    assert loaded == model
    images = l2l_jax.inpaint(loaded, params, BRIGHT[:3])
    np.testing.assert_array_equal(images, l2l_jax.inpaint(model, result.params, BRIGHT[:3]))


def test_evaluate_images(model, params):
    inpainted = l2l_jax.inpaint(model, params, BRIGHT, "left_8")
    images = BRIGHT / np.float32(255)
    np.testing.assert_allclose(inpainted[:, :, 4:], images[:, :, 4:], atol=1e-6)
    mse = np.square(inpainted - images)[:, :, :4].mean((1, 2, 3))
    result = l2l_jax.evaluate(model, params, BRIGHT, "left_8")
    assert result["mse"] == pytest.approx(mse.mean(), rel=1e-4)
    assert result["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-4)


def test_audit_from_arrays(model, params, result, tmp_path):
    settings = dict(attacks=("membership",))
    report = l2l_jax.audit(
        model, params, result.params, DARK, BRIGHT, workdir=tmp_path, audit=settings, evaluate=EVALUATION
    )
    # Without a retrained model, the verdict cannot be "forgotten".
    assert report["audit"]["verdict"]["finding"] in ("not forgotten", "undecided")
    np.testing.assert_allclose(
        report["unlearned"]["forget"]["mse"], result.metrics["unlearned"]["forget"]["mse"]
    )


def test_invalid_arguments_raise_user_errors(model, params):
    with pytest.raises(l2l_jax.UserError, match="expected .image, 8, 8, 3."):
        l2l_jax.inpaint(model, params, BRIGHT[:, :4])
    labels = np.array(["cat"] * 40), np.array(["cat"] * 30)
    with pytest.raises(l2l_jax.UserError, match="'cat' is in both retain and forget"):
        l2l_jax.unlearn(model, params, (DARK, labels[0]), (BRIGHT, labels[1]))
    with pytest.raises(l2l_jax.UserError, match="no method 'undoo'. Did you mean 'undo'"):
        l2l_jax.unlearn(model, params, DARK, BRIGHT, method="undoo")
