"""Every family can be named in a recipe."""

import json
import pathlib
import runpy

import pytest

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.models.registry import FAMILIES

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "digits_mae.py"


def recipe(**model):
    """The digits' recipe with another model, all of whose stages are pretrained alike."""
    digits = runpy.run_path(str(RECIPE))["get_config"]("encoder").to_dict()
    stages = FAMILIES[model["family"]]().pretraining_stages()
    pretrain = {stage.name: digits["pretrain"]["model"] for stage in stages}
    return {**digits, "model": model, "pretrain": pretrain}


@pytest.mark.parametrize("family", FAMILIES)
def test_published_sizes_are_the_defaults_and_can_be_written_down(family):
    config = parse_config(recipe(family=family))
    assert config.model == FAMILIES[family]()
    described = json.loads(json.dumps(config.describe("family", "model")))
    assert described["family"] == family
    assert parse_config(recipe(family=family, **described["model"])) == config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "mage", "width": 100, "num_heads": 3}, "config.model: 100 channels do not divide"),
        ({"family": "mage", "mask_mean": "half"}, "config.model.mask_mean is 'half'"),
        ({"family": "palette", "sampler": "euler"}, "config.model.sampler is 'euler'"),
        ({"family": "palette", "teacher_nose": "hole"}, "Did you mean config.model.teacher_noise"),
    ],
)
def test_mistakes_are_named(model, message):
    with pytest.raises(UserError, match=message):
        parse_config(recipe(**model))
