"""The benchmarks of the step: what they print is right where it can be known."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import pytest

from benchmarks.budget import cost
from benchmarks.layouts import parse_layouts
from benchmarks.step import Run
from benchmarks.step import table as step_table
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import open_phase
from tests.compiling import flags_of_one_device

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "digits_mae.py"


@pytest.fixture(scope="module")
def config():
    recipe = runpy.run_path(str(RECIPE))["get_config"]("encoder")
    small = dict(width=32, depth=1, num_heads=2)
    recipe.model.update(**small, **{f"decoder_{name}": value for name, value in small.items()})
    recipe.unlearn.batch_size = 8
    return parse_config(recipe)


@pytest.mark.soak  # of a budget in every run, below
def test_the_step_is_timed(config):
    stage = open_phase(config, "unlearn")
    run = Run(stage, parse_layouts(["pmap"], stage)["pmap"])
    for _ in range(2):
        run.time_once()
    figures = json.loads(json.dumps(run.figures(images=16)))
    assert figures["images_per_second"] == pytest.approx(16 * figures["steps_per_second"])
    assert figures["step ms"] == pytest.approx(1000 / figures["steps_per_second"])
    assert figures["gradient ms"] > 0 and figures["compile_seconds"] > 0
    assert "| pmap" in step_table({"pmap": figures})


def test_the_cost_of_a_budget(config):
    """Measured images: those asked for, of each set. The share: one measurement for so many steps."""
    unlearn = dataclasses.replace(config.unlearn, budget_images=5, budget_every=7)
    figures = cost(dataclasses.replace(config, unlearn=unlearn), measurements=1)
    assert figures["images"] == 10 and figures["step_ms"] > 0
    assert figures["longer"] == pytest.approx(figures["measurement_ms"] / figures["step_ms"] / 7)


def test_mistakes_are_named(config):
    with pytest.raises(UserError, match="--stage=pretrain: the phases .* are unlearn, pretrain.model"):
        open_phase(config, "pretrain")
    stage = open_phase(config, "pretrain.model")
    assert stage.objective.sets == ("train",)
    with pytest.raises(UserError, match="'8by1' is neither pmap nor a mesh such as 8x1"):
        parse_layouts(["8by1"], stage)
    with pytest.raises(UserError, match="data=4 times fsdp=1 devices, and there are 8"):
        parse_layouts(["4x1"], stage)
    assert list(parse_layouts([], stage)) == ["8x1", "4x2", "1x8", "pmap"]


@pytest.mark.soak  # each of its benchmarks is timed in every run, by the tests around it
def test_the_session_on_a_gpu_runs_with_tiny_models_on_a_cpu(tmp_path):
    """One JSON file holds all measurements; those that need a missing package are null."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
    settings = {"OUT": str(tmp_path), "PYTHON": sys.executable, "SMALL": "1", "ROUNDS": "2", "SLOWER": "10"}
    environment = os.environ | settings | {"XLA_FLAGS": flags_of_one_device()}
    subprocess.run(["bash", str(script)], env=environment, check=True)
    found = json.loads((tmp_path / "gpu_session.json").read_text())
    has_peer = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
    for name in ("step_mae", "step_vqgan", "step_diffusion"):
        assert found[name]["layouts"]["1x1"]["step ms"] > 0, (tmp_path / "gpu_session.log").read_text()
    for name in ("peer_mae", "peer_diffusion"):
        assert (found[name] is not None) == bool(has_peer)
