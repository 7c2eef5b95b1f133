"""Every method on every family: what it trains, and that forget images count."""

import pathlib
import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.experiment import batches
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods.registry import METHODS, make_task
from l2l_jax.models.mae.model import MAE
from l2l_jax.models.mage.model import MAGE
from l2l_jax.models.palette.model import Palette
from l2l_jax.models.registry import FAMILIES
from l2l_jax.weights.saved_models import save_model
from tests.matrix import cells
from tests.models.test_mage import random_params

MODELS = {
    "mae": MAE(
        image_size=8, patch_size=4, width=8, depth=1, num_heads=2,
        decoder_width=8, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5,
    ),
    "mage": MAGE(
        image_size=8, width=8, depth=1, num_heads=2,
        decoder_width=8, decoder_depth=1, decoder_num_heads=2,
        codebook_size=16, codebook_width=4, base_channels=4, channel_multipliers=(1,),
        num_res_blocks=1, groups=2, hidden_margin=0, blend_margin=0, blend_sigma=0.0,
    ),
    "palette": Palette(
        image_size=8, inner_channel=8, channel_mults=(1,), res_blocks=1, attn_res=(),
        num_head_channels=4, norm_groups=2, hole_bank_size=4,
    ),
}  # fmt: skip
RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "digits_mae.py"
FROZEN = {"mae": (), "mage": ("tokenizer",), "palette": ("holes",)}
"""What T reads."""
ENCODER_ONLY = ("encoder", "random_encoder", "epsilon")
WEIGHTED = [method for method in METHODS if method != "epsilon"]
"""Methods whose loss is a weighted sum."""
CELLS = cells(
    WEIGHTED,
    MODELS,
    normal=[
        *(("encoder", family) for family in MODELS),
        *((method, "mae") for method in WEIGHTED if method != "encoder"),
        ("noisy_label", "mage"),
    ],
)
"""In every run the other methods are those of MAE, as a method asks the same of all families, and one that
has a truth of its own on MAGE. Most run on all families in test_baselines_release.py and test_adapters.py."""
WITH_TEACHER = (*ENCODER_ONLY, "retain_label", "whole", "undo")
IMAGES = np.random.default_rng(0).random((4, 8, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def params():
    """Of the original models, by family."""
    teachers = {name: random_params(model) for name, model in MODELS.items()}
    masks = np.zeros((4, 8, 8), bool)
    masks[:, 2:6, 2:6] = True
    teachers["palette"]["holes"] = jnp.asarray(masks)
    return jax.device_get(teachers)  # arithmetic by NumPy compiles nothing


def gradients(family, method, params, batches, alphas):
    """Metrics and gradients for each batch and alpha, with one draw of T for all."""
    model = MODELS[family]
    task = make_task(method, model)
    low, high = model.value_range

    @jax.jit
    def run(trained, frozen, batch, alpha):
        inputs = task.prepare(frozen, batch, jax.random.key(0))
        rule = task.gradients
        terms, found = rule.compute(task, trained, frozen, inputs, alpha, lambda x: x)
        return terms, rule.combine(terms, found, alpha)

    # A student that has moved away from the teacher: otherwise the retain terms of some are zero.
    trained = jax.tree.map(lambda x: np.float32(1.1) * x, {part: params[part] for part in task.trained})
    frozen = {part: params[part] for part in task.frozen}  # a part too few is a KeyError
    scaled = [{of: low + (high - low) * x for of, x in batch.items()} for batch in batches]
    return jax.device_get([run(trained, frozen, b, a) for b, a in zip(scaled, alphas, strict=True)])


def distance(a, b):
    """Greatest difference of two trees of gradients by part, relative to the greatest entry."""

    def of(part):
        pairs = zip(jax.tree.leaves(a[part]), jax.tree.leaves(b[part]), strict=True)
        scale = max(np.abs(x).max() for x in jax.tree.leaves(a[part]))
        assert scale > 0
        return max(np.abs(x - y).max() for x, y in pairs) / scale

    return {part: of(part) for part in a}


@pytest.mark.parametrize(("method", "family"), CELLS)
def test_forget_images_count(family, method, params):
    """Other forget images give other gradients in all that is trained, unless alpha is 0."""
    one = {"retain": IMAGES[0], "forget": IMAGES[1]}
    other = {"retain": IMAGES[0], "forget": IMAGES[2] ** 3}
    results = gradients(family, method, params[family], [one, other, one, other], [0.5, 0.5, 0.0, 0.0])
    (metrics, grads), (_, changed), (plain, unweighted), (_, same) = results
    trained = ("encoder",) if method in ENCODER_ONLY else ("encoder", "decoder")
    assert tuple(sorted(grads)) == tuple(sorted(trained))
    assert all(d > 1e-3 for d in distance(grads, changed).values())
    assert all(d < 1e-5 for d in distance(unweighted, same).values())
    sign = -1 if method == "max_loss" else 1
    expected = metrics["retain"] + sign * 0.5 * metrics["forget"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(plain["loss"], metrics["retain"], rtol=1e-5)
    assert metrics["forget"] > 1e-3 and metrics["retain"] > 1e-4


@pytest.mark.parametrize("family", MODELS)
def test_no_method_keeps_more_on_the_devices_than_it_reads(family):
    for method in METHODS:
        task = make_task(method, MODELS[family])
        teacher = ()
        if method in WITH_TEACHER:
            teacher = ("encoder",) if method in ENCODER_ONLY else ("encoder", "decoder")
        assert sorted(task.frozen) == sorted((*teacher, *FROZEN[family]))
        assert task.sets == ("retain", "forget")


def test_noise_is_the_teachers():
    """Constant noise is the mean of the batch for every row; the other methods know no kind."""
    model = MODELS["mae"]
    batch = {"retain": IMAGES[0], "forget": IMAGES[1]}
    task = make_task("encoder", model, noise="constant")
    inputs = jax.jit(task.prepare)({}, batch, jax.random.key(0))
    np.testing.assert_allclose(inputs["forget"]["teacher"]["patches"], IMAGES[:2].mean(), rtol=1e-5)
    for kind in ("normal", "constant"):
        task = make_task("noisy_label", model, noise=kind)
        inputs = jax.jit(task.prepare)({}, batch, jax.random.key(0))
        assert inputs["forget"]["images"].std() > 0.1


def test_names():
    with pytest.raises(UserError, match="no method 'max-loss'. Did you mean 'max_loss'"):
        make_task("max-loss", MODELS["mae"])
    assert set(MODELS) == set(FAMILIES)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_experiment_trains_and_names_the_method(method, monkeypatch, tmp_path):
    recipe = runpy.run_path(str(RECIPE))["get_config"]("encoder")
    recipe.unlearn.method = method
    recipe.model.pretrained, recipe.unlearn.retain_budget = "", 0.0
    config = parse_config(recipe)
    used = []
    monkeypatch.setattr(batches, "training_batches", lambda *_, **__: None)
    trainer = SimpleNamespace(train=lambda _: {})
    monkeypatch.setattr(unlearning, "Trainer", lambda _, task, *__, **___: used.append(task) or trainer)
    monkeypatch.setattr(unlearning, "save_model", lambda _, __, card, **___: used.append(card))
    ends = {"phase_1a": {"retain": 2.0, "forget": 1.0}, "phase_1b": {"retain": 1.0, "forget": 2.0}}
    monkeypatch.setattr(unlearning, "run_phases", lambda *_, **__: ends)  # of epsilon
    folders = Workdir(tmp_path, config)
    save_model(folders.pretrained, {"encoder": np.zeros(1)}, {"origin": "made up"})
    assert unlearning.unlearned_params(config, folders, {}, Split(None, None)) == {}
    task, card = used
    expected = make_task(method, config.model)
    assert (task.trained, task.frozen) == (expected.trained, expected.frozen)
    assert task.losses.__qualname__ == expected.losses.__qualname__
    assert task.prepare.__qualname__ == expected.prepare.__qualname__
    assert card["origin"] == f"unlearned by the method {method}"


def test_an_unknown_method_in_the_config_is_refused():
    config = runpy.run_path(str(RECIPE))["get_config"]("encoder")
    config.unlearn.method = "maxloss"
    with pytest.raises(UserError, match="config.unlearn.method: There is no method 'maxloss'. Did you mean"):
        parse_config(config)
