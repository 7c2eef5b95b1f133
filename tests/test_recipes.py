"""Recipes hold every field; those on scikit-learn's digits run from nothing to a report."""

import dataclasses
import math
import pathlib
import runpy

import pytest

from l2l_jax import experiment
from l2l_jax.config import parse_config
from l2l_jax.models.registry import VARIANTS

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TRAINING = {"steps": 2, "batch_size": 8, "warmup_steps": 1}
TINY: dict[str, dict] = {  # fmt: skip
    "digits_vqgan": {
        "model": {
            "pretrained": "",
            "width": 16,
            "depth": 1,
            "decoder_width": 16,
            "decoder_depth": 1,
            "base_channels": 8,
        },
        "pretrain": {"tokenizer": TRAINING, "model": TRAINING},
        "unlearn": TRAINING,
    },
    "digits_diffusion": {
        "model": {
            "pretrained": "",
            "inner_channel": 8,
            "num_head_channels": 8,
            "norm_groups": 4,
            "sampling_steps": 2,
        },
        "pretrain": {"model": TRAINING},
        "unlearn": TRAINING,
    },
}
"""What makes a recipe small enough for a test: sizes and lengths only."""


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


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_recipe_runs_from_nothing_to_a_report(name, tmp_path):
    recipe = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    recipe.update(TINY[name])
    report = experiment.run(parse_config(recipe), tmp_path)
    for model in ("original", "unlearned"):
        for images in ("retain", "forget"):
            figures = report[model][images]
            assert {"psnr", "mse", "classifier_distance", "accuracy"} <= set(figures)
            assert all(map(math.isfinite, figures.values())), figures
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "restorations.png").is_file()
