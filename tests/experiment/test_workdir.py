"""A workdir belongs to one run."""

import dataclasses
import pathlib
import runpy

import pytest

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.train.sharding import MeshConfig

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "digits_mae.py"
CONFIG = parse_config(runpy.run_path(str(RECIPE))["get_config"]("encoder"))
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
        Workdir(tmp_path, ALPHA)
    message = str(error.value)
    assert f"config.unlearn.alpha was {CONFIG.unlearn.alpha} and is now 0.5" in message
    assert f"--config.model.pretrained={tmp_path / 'pretrained'}" in message
    assert f"delete {tmp_path / 'unlearn'} to replace it" in message


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
