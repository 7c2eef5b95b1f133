"""Association of a workdir with one run."""

import dataclasses
import json

import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data.records import Subset
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.experiment.unlearn import identify_inputs
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.weights.saved_models import save_model


def config_of(**fields):
    return parse_config(override(read_config("digits_mae:encoder"), {"model.pretrained": "", **fields}))


CONFIG, ALPHA = config_of(), config_of(**{"unlearn.alpha": 0.5})
LONGER = config_of(**{"pretrain.model.steps": 777})
PARAMS = {part: {"w": np.zeros(2)} for part in CONFIG.model.generative_parts}


def with_work(folder, *names, config=CONFIG):
    work = Workdir(folder, config)
    for name in names:
        getattr(work, name).mkdir(parents=True)
    return work


@pytest.mark.parametrize(
    "changes",
    [
        {"unlearn.log_every": 1, "unlearn.checkpoint_every": 3},
        {"data.workers": 3, "data.max_bad_fraction": 0.5, "data.general": "rest", "data.general_images": 5},
        {"model.remat": True, "model.scan": True, "mesh.data": 2, "mesh.fsdp": 4, "parallel": "pmap"},
        {"evaluate.tasks": "centre_8,centre_4", "evaluate.batch_size": 7, "audit.enabled": False},
    ],
)
def test_run_can_resume_with_other_devices_and_reports(changes, tmp_path):
    with_work(tmp_path, "pretrain", "pretrained", "unlearn")
    Workdir(tmp_path, config_of(**changes), redo=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.crop": "random"}, "config.data.crop was 'resize' and is now 'random'"),
        ({"pretrain.model.steps": 777}, "config.pretrain.model.steps was 2500 and is now 777"),
        ({"evaluate.tasks": "centre_4"}, "config.evaluate.first task was 'centre_8' and is now 'centre_4'"),
        ({"unlearn.alpha": 0.5}, "config.unlearn.alpha was 0.2 and is now 0.5"),
    ],
)
def test_different_run_is_rejected_with_suggestions(changes, message, tmp_path):
    """The mask is part of the run because the retain budget is measured with it."""
    with_work(tmp_path, "pretrain", "pretrained", "unlearn")
    with pytest.raises(UserError) as error:
        Workdir(tmp_path, config_of(**changes), redo=False)
    assert message in str(error.value) and "--redo to replace " in str(error.value)
    assert str(tmp_path / "unlearn") in str(error.value)
    starts = f"--config.model.pretrained={tmp_path / 'pretrained'}"
    assert (starts in str(error.value)) == (next(iter(changes)) in ("unlearn.alpha", "evaluate.tasks"))


def test_mask_may_change_without_a_budget(tmp_path):
    with_work(tmp_path, "unlearn", config=config_of(**{"unlearn.retain_budget": 0.0}))
    Workdir(tmp_path, config_of(**{"unlearn.retain_budget": 0.0, "evaluate.tasks": "centre_4"}))


def test_unfinished_parts_may_change(tmp_path):
    """A pretrained model can be unlearned in several ways, and an empty workdir accepts any run."""
    with_work(tmp_path, "pretrained")
    for config in (ALPHA, config_of(**{"data.forget": "1", "data.retain": "2"})):
        Workdir(tmp_path, config)
    for config in (CONFIG, LONGER, LONGER):
        Workdir(tmp_path / "empty", config)


def test_redo_replaces_dependent_results(tmp_path):
    with_work(tmp_path, "pretrained", "unlearn", "unlearned")
    Workdir(tmp_path, ALPHA, redo=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"pretrained"}
    Workdir(tmp_path, LONGER, redo=True)
    assert not (tmp_path / "pretrained").exists()


def images(count):
    return Subset(open_source(CONFIG.data, "train", 16), np.arange(count))


def test_different_images_are_rejected_and_moved_images_accepted(tmp_path):
    def check(work, count):
        work.check_inputs(lambda: identify_images(retain=images(3), forget=images(count)))

    check(with_work(tmp_path, "unlearned"), 2)
    work = Workdir(tmp_path, dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path="moved")))
    check(work, 2)
    with pytest.raises(UserError, match=r"the images to forget have changed \(2 then, 4 now\).*or delete"):
        check(work, 4)
    work = Workdir(tmp_path, CONFIG, redo=True)
    check(work, 4)
    assert not work.unlearned.exists()


@pytest.mark.parametrize(
    ("changes", "weight", "message"),
    [
        ({}, 1.0, "the weights of the original model have changed"),
        ({"data.validation_fraction": 0.2}, 0.0, "the validation images to retain have changed"),
        ({"data.validation_fraction": 0.2, "unlearn.retain_budget": 0.0}, 0.0, None),
    ],
)
def test_different_inputs_are_rejected(changes, weight, message, tmp_path):
    """Validation images are part of a run only with a retain budget."""

    def check(config, params):
        work.check_inputs(lambda: identify_inputs(config, params, Split(images(3), images(2))))

    work = with_work(tmp_path, "unlearned")
    check(CONFIG, PARAMS)
    changed = config_of(**changes), PARAMS | {"encoder": {"w": np.full(2, weight)}}
    if message is None:
        check(*changed)
        return
    with pytest.raises(UserError, match=message):
        check(*changed)


def test_model_of_another_run_is_rejected(tmp_path):
    params = {"encoder": np.arange(3.0)}
    card = Workdir(tmp_path / "a", CONFIG).facts("unlearned")
    assert card["run"]["config"]["unlearn"]["alpha"] == CONFIG.unlearn.alpha
    save_model(tmp_path / "a" / "unlearned", params, card)
    np.testing.assert_equal(Workdir(tmp_path / "a", CONFIG).load("unlearned", params), params)
    other = Workdir(tmp_path / "b", ALPHA)
    assert other.load("unlearned", params) is None
    save_model(other.unlearned, params, card)
    with pytest.raises(UserError, match="unlearned was made by another run than that of .*run.json"):
        other.load("unlearned", params)
    save_model(other.unlearned, params, {})  # as written by an earlier version
    np.testing.assert_equal(other.load("unlearned", params), params)


def test_run_of_an_earlier_version_can_resume(tmp_path):
    """run.json as written by version 0.1: flat options of all methods, classes as numbers."""
    flat = {"noise": "normal", "distill": 0.5, "alpha": CONFIG.unlearn.alpha, "method": "encoder"}
    data = {"source": "digits", "path": "", "forget": [5, 6, 7, 8, 9], "retain": [0, 1, 2, 3, 4]}
    old = {"pretrain": {"seed": 0}, "unlearn": {"data": data, "unlearn": flat}}
    for name in ("pretrained", "unlearned"):
        (tmp_path / name).mkdir()
    (tmp_path / "run.json").write_text(json.dumps(old))
    Workdir(tmp_path, CONFIG)
    stored = json.loads((tmp_path / "run.json").read_text())["config"]["unlearn"]
    assert stored["encoder"] == {"noise": "normal"}
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="config.unlearn.alpha was 0.2 and is now 0.5"):
        Workdir(tmp_path, ALPHA)
