"""The library as a notebook uses it."""

import numpy as np
import pytest

import l2l_jax
from l2l_jax.models.mae.model import MAE
from l2l_jax.report import write

SMALL = dict(width=8, depth=1, num_heads=2, decoder_width=8, decoder_depth=1, decoder_num_heads=2)
MODEL = MAE(image_size=8, patch_size=2, **SMALL)
pytestmark = pytest.mark.usefixtures("one_device")

RNG = np.random.default_rng(0)
DARK = RNG.integers(0, 100, (40, 8, 8, 3), np.uint8)
BRIGHT = RNG.integers(150, 256, (30, 8, 8, 3), np.uint8)
TRAINING = dict(steps=4, batch_size=8, learning_rate=1e-3, budget_images=4)
EVALUATION = dict(features="none", batch_size=8)


@pytest.fixture(scope="module")
def params():
    import jax

    return jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def result(params, one_device, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:  # report/ draws reports
        patch.setattr(write, "draw", lambda *_: {})
        patch.setattr(write, "page", lambda *_: "")
        return l2l_jax.unlearn(
            MODEL, params, DARK, BRIGHT, workdir=str(folder), unlearn=TRAINING, evaluate=EVALUATION, seed=1
        )


def test_a_model_is_unlearned_from_arrays(params, result):
    assert result.params["encoder"].keys() == params["encoder"].keys()
    assert result.metrics["test_images"]["retain"]["count"] == 8  # a fifth of 40
    assert result.metrics["test_images"]["forget"]["count"] == 6
    assert (result.workdir / "report" / "report.html").is_file()
    retain = result.pictures["retain"]
    assert retain["unlearned"].shape == (8, 8, 8, 3)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    np.testing.assert_array_equal(retain["unlearned"][:, ~mask], retain["images"][:, ~mask])
    error = np.square(retain["unlearned"] - retain["images"])[:, mask].mean()
    assert error == pytest.approx(result.metrics["unlearned"]["retain"]["mse"], rel=1e-5)


def test_equal_arguments_find_the_finished_run(params, result):
    again = l2l_jax.unlearn(
        MODEL, params, DARK, BRIGHT, workdir=result.workdir, unlearn=TRAINING, evaluate=EVALUATION, seed=1
    )
    assert again.metrics["unlearned"] == result.metrics["unlearned"]


def test_a_saved_model_is_loaded_with_its_sizes(result):
    model, params = l2l_jax.load(str(result.workdir / "unlearned"))
    assert model == MODEL
    np.testing.assert_array_equal(
        l2l_jax.inpaint(model, params, BRIGHT[:3]), l2l_jax.inpaint(MODEL, result.params, BRIGHT[:3])
    )


def test_metrics_of_images(params):
    inpainted = l2l_jax.inpaint(MODEL, params, BRIGHT, "left_8")
    images = BRIGHT / np.float32(255)
    np.testing.assert_allclose(inpainted[:, :, 4:], images[:, :, 4:], atol=1e-6)
    mse = np.square(inpainted - images)[:, :, :4].mean((1, 2, 3))
    found = l2l_jax.evaluate(MODEL, params, BRIGHT, "left_8")
    assert found["mse"] == pytest.approx(mse.mean(), rel=1e-4)
    assert found["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-4)


def test_an_audit_of_arrays(params, result, tmp_path):
    settings = dict(attacks=("membership",))
    report = l2l_jax.audit(
        MODEL, params, result.params, DARK, BRIGHT, workdir=tmp_path, audit=settings, evaluate=EVALUATION
    )
    assert report["audit"]["verdict"]["finding"] == "undecided"  # without a retrained model
    np.testing.assert_allclose(
        report["unlearned"]["forget"]["mse"], result.metrics["unlearned"]["forget"]["mse"]
    )


def test_mistakes_are_named(params):
    with pytest.raises(l2l_jax.UserError, match="expected .image, 8, 8, 3."):
        l2l_jax.inpaint(MODEL, params, BRIGHT[:, :4])
    labels = np.array(["cat"] * 40), np.array(["cat"] * 30)
    with pytest.raises(l2l_jax.UserError, match="'cat' is in retain and in forget"):
        l2l_jax.unlearn(MODEL, params, (DARK, labels[0]), (BRIGHT, labels[1]))
    with pytest.raises(l2l_jax.UserError, match="no method 'undoo'. Did you mean 'undo'"):
        l2l_jax.unlearn(MODEL, params, DARK, BRIGHT, method="undoo")
