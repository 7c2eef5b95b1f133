"""Every family's recipe on scikit-learn's digits runs from nothing to a report."""

import math
import pathlib
import runpy

import pytest

from l2l_jax import experiment
from l2l_jax.config import parse_config
from l2l_jax.evaluation.evaluate import METRICS

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TRAINING = {"steps": 2, "batch_size": 8, "warmup_steps": 1}
TINY: dict[str, dict] = {
    "digits_vqgan": {
        "model": {"width": 16, "depth": 1, "decoder_width": 16, "decoder_depth": 1, "base_channels": 8},
        "pretrain": {"tokenizer": TRAINING, "model": TRAINING},
        "unlearn": TRAINING,
    },
    "digits_diffusion": {
        "model": {"inner_channel": 8, "num_head_channels": 8, "norm_groups": 4, "sampling_steps": 2},
        "pretrain": {"model": TRAINING},
        "unlearn": TRAINING,
    },
}
"""What makes a recipe small enough for a test: sizes and lengths only."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_recipe_runs_from_nothing_to_a_report(name, tmp_path):
    recipe = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    recipe.update(TINY[name])
    report = experiment.run(parse_config(recipe), tmp_path)
    for model in ("original", "unlearned"):
        for images in ("retain", "forget"):
            figures = report[model][images]
            assert set(METRICS) <= set(figures)
            assert all(map(math.isfinite, figures.values())), figures
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "report" / "restorations.png").is_file()
