"""The models that come with the package are what their cards say."""

import hashlib
import json
import pathlib
import runpy

import numpy as np
import pytest

from l2l_jax import shipped
from l2l_jax.config import parse_config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evaluation.hole_errors import hole_errors
from l2l_jax.evaluation.restoration import Restorer
from l2l_jax.evaluation.tasks import parse_tasks
from l2l_jax.stages.original import original_params
from l2l_jax.stages.retraining import FAIR_RATIO
from l2l_jax.weights.transfer import load_pretrained, original_weights
from l2l_jax.workdir import Workdir

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
RECIPES = ("digits_mae", "digits_vqgan", "digits_diffusion")


def config_of(recipe, **fields):
    config = runpy.run_path(str(CONFIGS / f"{recipe}.py"))["get_config"]()
    config.update_from_flattened_dict(fields)
    return parse_config(config)


def test_a_model_and_its_twin_for_each_recipe():
    assert set(shipped.names()) == {name + end for name in RECIPES for end in ("", shipped.RETRAINED)}
    files = [shipped.resolved(name) for name in shipped.names()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    for name, file in zip(shipped.names(), files, strict=True):
        card = shipped.card(name)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
        recipe = json.loads(json.dumps(config_of(name.removesuffix(shipped.RETRAINED)).describe()))
        assert card["model"].items() <= recipe["model"].items()  # fields may have come since
        for stage, how in card["pretrain"].items():
            assert how.items() <= recipe["pretrain"][stage].items()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_figures_of_the_cards_hold(recipe, one_device):
    """Errors in the hole on test images; the twin restores what it saw as the original does, and no other."""
    config = config_of(recipe)
    test = evaluation_sets(config.data, open_source(config.data, "test", config.model.image_size))
    validation = validation_sets(config.data, open_source(config.data, "validation", config.model.image_size))
    task, batch_size = parse_tasks(config.evaluate.tasks)[0], config.evaluate.batch_size
    restorer = Restorer(config.model, task, batch_size=batch_size, seed=config.seed)  # compiled once
    errors, ratios = {}, []
    for name in (recipe, recipe + shipped.RETRAINED):
        params = load_pretrained(shipped.resolved(name), config.family, config.model)
        figures = shipped.card(name)["test_figures"]
        for of, source in test._asdict().items():
            errors[name, of] = hole_errors(config, params, source, restorer, of).mean()
            np.testing.assert_allclose(errors[name, of], figures[of]["mse"], rtol=0.02, err_msg=name)
        ratios.append(hole_errors(config, params, validation.retain, restorer).mean())
    assert ratios[1] / ratios[0] <= FAIR_RATIO
    assert errors[recipe + shipped.RETRAINED, "forget"] > 1.5 * errors[recipe, "forget"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_card_of_a_twin_says_how_much_its_seed_matters(recipe):
    """After the attacks of the recipe's own audit, as many steps: forget errors 1 (MAE: 3) to 50 % apart."""
    least = 0.03 if recipe == "digits_mae" else 0.01
    audit, seeds = config_of(recipe).audit, shipped.card(recipe + shipped.RETRAINED)["seeds"]
    steps = {"as_it_lies": 0, "retain_tuning": audit.steps}
    steps |= {f"relearning_{shots}": audit.shot_steps for shots in audit.shots}
    steps |= {f"fresh_decoder_{images}": audit.decoder_steps for images in ("retain", "all")}
    assert seeds["count"] >= 3
    for attack, step in steps.items():
        (spread,) = seeds["spread"][attack].items()
        assert spread[0] == str(step) and least < spread[1]["error"] < 0.5


def test_recipes_start_from_them(tmp_path):
    for recipe in RECIPES:
        assert config_of(recipe).pretrained == recipe
    config = config_of("digits_mae")
    params = original_params(config, Workdir(tmp_path, config), None)
    assert {part: len(params[part]) > 1 for part in params} == {"encoder": True, "decoder": True}


def test_only_for_digits(tmp_path):
    config = config_of("digits_mae", **{"data.source": "folder", "data.path": str(tmp_path)})
    with pytest.raises(UserError, match="a model of handwritten digits, but config.data.source is 'folder'"):
        original_params(config, Workdir(tmp_path, config), None)


def test_the_report_names_the_model_and_its_own_licence():
    facts = original_weights(shipped.resolved("digits_mae"))
    assert facts["origin"] == "the shipped model digits_mae" and facts["licence"] == "Apache-2.0"
    assert facts["sha256"] == hashlib.sha256(shipped.resolved("digits_mae").read_bytes()).hexdigest()


def test_a_name_that_is_none():
    with pytest.raises(UserError, match="no shipped model 'digits'; there are: digits_diffusion, "):
        shipped.card("digits")
    assert shipped.resolved("runs/digits_mae/pretrained") == pathlib.Path("runs/digits_mae/pretrained")
