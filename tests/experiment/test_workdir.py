"""A workdir belongs to one run."""

import dataclasses
import json

import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import read_config
from l2l_jax.data.records import Subset
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.experiment.unlearn import identify_inputs
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.weights.saved_models import save_model

CONFIG = parse_config(read_config("digits_mae:encoder"))
CONFIG = dataclasses.replace(CONFIG, pretrained="")
ALPHA = dataclasses.replace(CONFIG, unlearn=dataclasses.replace(CONFIG.unlearn, alpha=0.5))
STAGES = {"model": dataclasses.replace(CONFIG.pretrain["model"], steps=777)}
LONGER = dataclasses.replace(CONFIG, pretrain=STAGES)


def with_work(folder, *names):
    work = Workdir(folder, CONFIG)
    for name in names:
        getattr(work, name).mkdir(parents=True)
    return work


def test_the_same_run_may_go_on(tmp_path):
    with_work(tmp_path, "pretrained", "unlearn")
    logged = dataclasses.replace(CONFIG.unlearn, log_every=1, checkpoint_every=3)
    Workdir(tmp_path, dataclasses.replace(CONFIG, unlearn=logged))
    unlearn = dataclasses.replace(CONFIG.unlearn, retain_budget=None)
    fixed = dataclasses.replace(CONFIG, unlearn=unlearn)
    Workdir(tmp_path / "fixed", fixed).unlearn.mkdir(parents=True)
    evaluated = dataclasses.replace(CONFIG.evaluate, tasks=("centre_4",))
    Workdir(tmp_path / "fixed", dataclasses.replace(fixed, evaluate=evaluated))


def test_with_a_budget_the_mask_belongs_to_the_run(tmp_path):
    unlearn = dataclasses.replace(CONFIG.unlearn, retain_budget=1.1)
    config = dataclasses.replace(CONFIG, unlearn=unlearn)
    Workdir(tmp_path, config).unlearn.mkdir()
    Workdir(tmp_path, config)
    evaluated = dataclasses.replace(CONFIG.evaluate, tasks=("centre_4", "centre_8"))
    with pytest.raises(UserError, match="config.evaluate.first task was 'centre_8' and is now 'centre_4'"):
        Workdir(tmp_path, dataclasses.replace(config, evaluate=evaluated))


def test_how_many_processes_read_may_change_and_the_crops_may_not(tmp_path):
    with_work(tmp_path, "pretrain", "unlearn")
    reading = dataclasses.replace(CONFIG.data, workers=3, max_bad_fraction=0.5)
    Workdir(tmp_path, dataclasses.replace(CONFIG, data=reading))
    cropped = dataclasses.replace(CONFIG.data, crop="random")
    with pytest.raises(UserError, match="config.data.crop was 'resize' and is now 'random'"):
        Workdir(tmp_path, dataclasses.replace(CONFIG, data=cropped))


def test_another_unlearning_is_refused_with_a_way_out(tmp_path):
    with_work(tmp_path, "pretrained", "unlearn")
    with pytest.raises(UserError) as error:
        Workdir(tmp_path, ALPHA, redo=False)
    message = str(error.value)
    assert f"config.unlearn.alpha was {CONFIG.unlearn.alpha} and is now 0.5" in message
    assert f"--config.model.pretrained={tmp_path / 'pretrained'}" in message
    assert f"or --redo to replace {tmp_path / 'unlearn'}" in message


def test_another_model_is_refused(tmp_path):
    with_work(tmp_path, "pretrain")
    with pytest.raises(UserError, match="config.pretrain.model.steps was .* and is now 777"):
        Workdir(tmp_path, LONGER)


def test_a_pretrained_model_serves_several_unlearnings(tmp_path):
    with_work(tmp_path, "pretrained")
    Workdir(tmp_path, ALPHA)
    other = dataclasses.replace(CONFIG.data, forget=(1,), retain=(2,))
    Workdir(tmp_path, dataclasses.replace(CONFIG, data=other))


def test_an_empty_workdir_takes_any_run(tmp_path):
    Workdir(tmp_path, CONFIG)
    Workdir(tmp_path, LONGER)
    Workdir(tmp_path, LONGER)


def test_redo_replaces_what_depends_on_the_change(tmp_path):
    with_work(tmp_path, "pretrained", "unlearn", "unlearned")
    Workdir(tmp_path, ALPHA, redo=True)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"pretrained"}
    Workdir(tmp_path, LONGER, redo=True)
    assert not (tmp_path / "pretrained").exists()


def images(count):
    digits = open_source(CONFIG.data, "train", 16)
    return Subset(digits, np.arange(count))


def test_other_images_are_refused_and_the_same_ones_may_be_elsewhere(tmp_path):
    work = with_work(tmp_path, "unlearned")
    work.check_inputs(identify_images(retain=images(3), forget=images(2)))
    moved = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path="elsewhere"))
    work = Workdir(tmp_path, moved)
    work.check_inputs(identify_images(retain=images(3), forget=images(2)))
    with pytest.raises(UserError, match=r"the images to forget have changed \(2 then, 4 now\).*or delete"):
        work.check_inputs(identify_images(retain=images(3), forget=images(4)))
    work = Workdir(tmp_path, CONFIG, redo=True)
    work.check_inputs(identify_images(retain=images(3), forget=images(4)))
    assert not work.unlearned.exists()


def test_another_original_is_refused(tmp_path):
    params = {part: {"w": np.zeros(2)} for part in CONFIG.model.generative_parts}
    sets = Split(images(3), images(2))
    with_work(tmp_path, "unlearned").check_inputs(identify_inputs(CONFIG, params, sets))
    given = Workdir(tmp_path, CONFIG)
    given.check_inputs(identify_inputs(CONFIG, params, sets))
    with pytest.raises(UserError, match="the weights of the original model have changed"):
        given.check_inputs(identify_inputs(CONFIG, params | {"encoder": {"w": np.ones(2)}}, sets))


def test_with_a_budget_other_validation_images_are_refused(tmp_path):
    params = {part: {"w": np.zeros(2)} for part in CONFIG.model.generative_parts}
    work = with_work(tmp_path, "unlearned")

    def check(fraction, budget):
        data = dataclasses.replace(CONFIG.data, validation_fraction=fraction)
        unlearn = dataclasses.replace(CONFIG.unlearn, retain_budget=budget)
        config = dataclasses.replace(CONFIG, data=data, unlearn=unlearn)
        work.check_inputs(identify_inputs(config, params, Split(images(3), images(2))))

    check(0.1, None)
    check(0.2, None)  # without a budget they decide on nothing
    check(0.1, 1.1)
    with pytest.raises(UserError, match="the validation images to retain have changed"):
        check(0.2, 1.1)


def test_a_model_that_another_run_has_made_is_refused(tmp_path):
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
    save_model(other.unlearned, params, {})  # of an earlier version
    np.testing.assert_equal(other.load("unlearned", params), params)


def test_a_run_of_an_earlier_version_may_go_on(tmp_path):
    """As version 0.1 wrote run.json: options of all methods beside each other, classes as numbers."""
    flat = {"noise": "normal", "distill": 0.5, "alpha": CONFIG.unlearn.alpha, "method": "encoder"}
    data = {"source": "digits", "path": "", "forget": [5, 6, 7, 8, 9], "retain": [0, 1, 2, 3, 4]}
    old = {"pretrain": {"seed": 0}, "unlearn": {"data": data, "unlearn": flat}}
    for name in ("pretrained", "unlearned"):
        (tmp_path / name).mkdir()
    (tmp_path / "run.json").write_text(json.dumps(old))
    Workdir(tmp_path, CONFIG)
    assert json.loads((tmp_path / "run.json").read_text())["config"]["unlearn"]["encoder"] == {
        "noise": "normal"
    }
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="config.unlearn.alpha was 0.2 and is now 0.5"):
        Workdir(tmp_path, ALPHA)


def test_a_damaged_record_is_named(tmp_path):
    with_work(tmp_path, "unlearn")
    (tmp_path / "run.json").write_text('{"pretrain"')
    with pytest.raises(UserError, match="run.json is damaged"):
        Workdir(tmp_path, CONFIG)


def test_a_file_in_the_place_of_the_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        Workdir(tmp_path / "file", CONFIG)


def test_a_run_may_go_on_with_other_devices_and_less_memory(tmp_path):
    with_work(tmp_path, "pretrain", "unlearn")
    other = dataclasses.replace(CONFIG.model, remat=True)
    Workdir(tmp_path, dataclasses.replace(CONFIG, model=other, mesh=MeshConfig(2, 4), parallel="pmap"))
