"""Recipes hold every field. tests/test_published_recipes.py and tests/test_main.py run them."""

import dataclasses
import pathlib
import runpy

import pytest

from l2l_jax.config import parse_config
from l2l_jax.models.registry import VARIANTS

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def recipes():
    for path in sorted(CONFIGS.glob("*.py")):
        for variant in ((), ("runlocal",)) if path.stem in ("mae", "vqgan", "diffusion") else ((),):
            name = ":".join((path.stem, *variant))
            yield pytest.param(runpy.run_path(str(path))["get_config"](*variant).to_dict(), id=name)


@pytest.mark.parametrize("recipe", list(recipes()))
def test_every_field_can_be_changed_on_the_command_line(recipe):
    """Flags change only what a recipe holds, so it holds all fields but those that its variant gives."""
    config = parse_config(recipe)
    names = ("data", "unlearn", "evaluate", "audit", "mesh")
    sections = {name: (recipe[name], getattr(config, name)) for name in names}
    sections |= {stage: (recipe["pretrain"][stage], how) for stage, how in config.pretrain.items()}
    fixed = {"value_range", "channels"}  # a model's own range; programs read RGB
    fixed |= set(VARIANTS[config.family].get(recipe["model"].get("variant", ""), ()))
    own = set(recipe["model"]) - {"family", "variant", "pretrained"}
    sections["model"] = own | fixed, config.model
    for name, (held, checked) in sections.items():
        assert set(held) == {field.name for field in dataclasses.fields(checked)}, name
