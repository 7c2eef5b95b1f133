"""The Pareto front: scheduling of cells on devices, without repetition."""

import functools
import json
import os
import threading

import jax
import numpy as np
import pytest

from l2l_jax.compare import front_report
from l2l_jax.compare.front import Grid, Setting, run_front
from l2l_jax.errors import Diverged, UserError
from l2l_jax.evals import evaluator as evaluate
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.experiment import unlearn as unlearning
from tests.fixtures.configs import digits_config

# Each set of images is one batch.
FEW = {"evaluate.features": "none", "evaluate.batch_size": 32, "data.test_per_class": 6}
FEW["data.validation_fraction"] = 0.04


def test_every_method_gets_the_same_number_of_settings():
    grid = Grid(("epsilon", "undo"), budgets=[1.1, 1.25], weights=[0.5], ratios=[0.3], rates=[1e-3, 2e-3])
    grid.check()
    settings = list(grid.settings())
    assert len(settings) == 12 and len({(s.method, s.label) for s in settings}) == 12
    assert settings[0] == Setting("epsilon", (("retain_budget", 1.1), ("learning_rate", 0.001)))
    assert settings[0].label == "retain_budget_1.1_learning_rate_0.001"
    assert {dict(s.fields).get("epsilon_ratio") for s in settings[:6]} == {None, 0.3}
    assert {dict(s.fields).get("alpha") for s in settings[6:]} == {None, 0.5}
    with pytest.raises(UserError, match="gives 1 values and --epsilon_ratios 0"):
        grid._replace(ratios=[]).check()
    with pytest.raises(UserError, match="--methods names 'undoo'; known: encoder"):
        grid._replace(methods=["undoo"]).check()
    with pytest.raises(UserError, match="The grid is empty"):
        Grid(("undo",)).check()


def test_method_incompatible_with_the_config_is_rejected_early(tmp_path):
    config = digits_config({**FEW, "unlearn.adapter": "norms"})
    with pytest.raises(UserError, match="The method undo cannot be run: an adapter is added .* --methods"):
        run_front(config, tmp_path / "run", Grid(("encoder", "undo"), budgets=[1.1]), 0.5)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def compiled_once():
    """Share one inpainter, compiled for one device, among all fronts of this file."""
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "Inpainter", functools.cache(Inpainter))
        patch.setattr(jax, "local_devices", lambda *_, **__: first)
        yield


@pytest.fixture
def unlearned(monkeypatch, compiled_once):
    """Replace training: weights move further with larger budget and seed."""
    calls = []

    def params(config, folders, original, sets, *, devices, phases):
        budget, seed = config.unlearn.retain_budget, config.seed
        calls.append((config.unlearn.method, budget, seed, devices, threading.get_ident()))
        assert config.pretrained == "digits_mae" and phases.parts[-5:-3] == (config.unlearn.method, "phases")
        if budget > 5:
            raise Diverged("the loss is not finite")
        far = (budget - 1) * (1 + seed / 10) * (2 if config.unlearn.method == "undo" else 1)
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda x: x + np.float32(0.01 * far) * rng.standard_normal(x.shape), original)

    monkeypatch.setattr(unlearning, "unlearned_params", params)
    return calls


@pytest.mark.slow
def test_cells_run_once_in_parallel_and_are_reported_on_test_images(unlearned, tmp_path, monkeypatch):
    devices = jax.devices()[:2]  # each device compiles separately
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(jax, "device_count", lambda *_: 2)
    grid = Grid(("encoder", "undo"), budgets=[2.0, 9.0], seeds=[0, 2])
    report = run_front(digits_config(FEW), tmp_path, grid, limit=0.5)
    assert sorted(call[:3] for call in unlearned) == sorted(
        (method, budget, seed) for method in grid.methods for budget in grid.budgets for seed in grid.seeds
    )
    assert all(len(call[3]) == 1 for call in unlearned)
    assert len({call[3][0] for call in unlearned}) > 1
    lines = {(line["method"], line["setting"]): line for line in report["settings"]}
    assert "not finite" in lines["undo", "retain_budget_9"]["failed"]
    # Reported metrics are computed from the files of the cells, on test images.
    names = (f"undo/retain_budget_2/seed_{seed}" for seed in grid.seeds)
    original, *cells = (
        json.loads((tmp_path / f"front/cells/{name}.json").read_text())["value"]
        for name in ("original", *names)
    )
    before = original["errors"]
    for split, reported in lines["undo", "retain_budget_2"]["test"].items():
        ratios = [np.mean(cell["errors"]["test"][split]) / np.mean(before["test"][split]) for cell in cells]
        assert reported["ratio"][0] == pytest.approx(np.median(ratios))
        assert reported["ratio"][1] < reported["ratio"][0] < reported["ratio"][2]
    ratios = [
        np.mean(c["errors"]["validation"]["retain"]) / np.mean(before["validation"]["retain"]) for c in cells
    ]
    assert lines["undo", "retain_budget_2"]["validation"]["cost"] == pytest.approx(np.median(ratios) - 1)
    assert set(report["methods"]) == {"encoder", "undo"}
    table = (tmp_path / "front/front.md").read_text()
    assert "diverged" in table and "retain_budget_2" in table
    assert (tmp_path / "front/front.png").stat().st_size > 5000

    unlearned.clear()
    wider = grid._replace(methods=("undo",), budgets=[1.7, 2.0, 9.0])
    again = run_front(digits_config({**FEW, "data.workers": 0}), tmp_path, wider, limit=0.5)
    assert sorted(call[:3] for call in unlearned) == [("undo", 1.7, seed) for seed in (0, 2)]
    assert again["settings"][1]["test"] == lines["undo", "retain_budget_2"]["test"]


def test_cpu_trains_two_cells_at_a_time(unlearned, tmp_path, monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    both, alone = threading.Barrier(2), unlearning.unlearned_params

    def params(*arguments, **more):
        both.wait(60)  # times out unless another cell arrives here concurrently
        return alone(*arguments, **more)

    monkeypatch.setattr(unlearning, "unlearned_params", params)
    run_front(digits_config(FEW), tmp_path, Grid(("encoder",), budgets=[1.5], seeds=[0, 2]), limit=0.5)
    assert len(unlearned) == 2 and all(call[3] == [device] for call in unlearned)


def test_minimum_depth_is_that_of_the_strongest_attack(tmp_path):
    """Median over seeds for each attack: 0.8 and 0.5; knowledge of a single seed is ignored."""
    depths = [{"a": 0.9, "b": 0.5}, {"a": 0.7, "b": 0.4, "c": 0.1}, {"a": 0.8, "b": 0.6}]
    errors = {kind: {split: [0.1, 0.2] for split in ("retain", "forget")} for kind in ("validation", "test")}
    figures = {split: {} for split in ("retain", "forget")}
    cells = [{"errors": errors, "figures": figures, "depth": depth} for depth in depths]
    original = {"errors": errors, "figures": figures}
    settings = {
        Setting("undo", (("alpha", 1.0),)): cells,
        Setting("undo", (("alpha", 2.0),)): cells[:2] + [original],
    }
    report = front_report.write(tmp_path, settings, original, {"limit": 0.5})
    assert report["settings"][0]["depth"] == 0.5
    assert "depth" not in report["settings"][1]
    assert (tmp_path / "front.png").exists()
