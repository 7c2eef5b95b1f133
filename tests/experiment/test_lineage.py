"""Which model a budget is relative to when models are unlearned one after another."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import read_config
from l2l_jax.data.arrays import open_digits
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.budget import budget_reference, first_of_line
from l2l_jax.experiment.phase import TrainingPhase
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.weights.saved_models import read_card, save_model

CONFIG = parse_config(read_config("digits_mae:encoder"))
CONFIG = dataclasses.replace(CONFIG, unlearn=dataclasses.replace(CONFIG.unlearn, retain_budget=None))


def started_from(pretrained, **unlearn):
    how = dataclasses.replace(CONFIG.unlearn, **unlearn)
    return dataclasses.replace(CONFIG, pretrained=str(pretrained), unlearn=how)


@pytest.fixture
def first(tmp_path):
    """A folder with a copy of the shipped model, and its parameters."""
    params = original_params(CONFIG, Workdir(tmp_path / "run", CONFIG), None)
    save_model(tmp_path / "first", params, CONFIG.describe("family", "model"))
    return tmp_path / "first", params


def unlearned_from(model, folder, monkeypatch):
    """The folder of a model that is said to be unlearned from another one."""
    config = started_from(model)
    original = original_params(config, Workdir(folder, config), None)
    monkeypatch.setattr(TrainingPhase, "train", lambda *_, **__: original)
    folders = Workdir(folder, config)
    unlearning.unlearned_params(config, folders, original, Split(*2 * [open_digits("test", 16)]))
    return folders.unlearned


def test_every_model_of_a_line_names_the_first(first, tmp_path, monkeypatch):
    one = unlearned_from(first[0], tmp_path / "1", monkeypatch)
    two = unlearned_from(one, tmp_path / "2", monkeypatch)
    assert [first_of_line(model) for model in (first[0], one, two)] == [str(first[0])] * 3
    assert read_card(two)["first_original"] == str(first[0])
    assert first_of_line("digits_mae") == "digits_mae"

    config = started_from(two, retain_budget=1.1)
    found = budget_reference(config, two, first_of_line(two))
    for name, value in found["encoder"].items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, first[1]["encoder"][name])
    # The first one itself is relative to what is unlearned: to itself.
    assert budget_reference(started_from(first[0]), first[0], str(first[0])) is None
    assert budget_reference(CONFIG, "digits_mae", "digits_mae") is None

    shutil.move(first[0], tmp_path / "moved")
    with pytest.raises(
        UserError, match="relative to .*first, the first original model: .*budget_original=PATH"
    ):
        budget_reference(config, two, first_of_line(two))
    config = started_from(two, retain_budget=1.1, budget_original=str(tmp_path / "moved"))
    assert budget_reference(config, two, first_of_line(two)) is not None


def test_a_later_request_imitates_the_first_model(first, tmp_path, monkeypatch):
    """What the request before cost is not what this one starts to pay from."""
    one = unlearned_from(first[0], tmp_path / "1", monkeypatch)
    newer = jax.tree.map(lambda x: x + 1, original_params(started_from(one), Workdir(one, CONFIG), None))
    save_model(one, newer, read_card(one))
    taught = []
    monkeypatch.setattr(TrainingPhase, "train", lambda *_, **run: taught.append(run["teacher"]) or newer)
    ends = {"retain": 1.0, "forget": 1.0}
    monkeypatch.setattr(unlearning, "_terms_at_end", lambda *_: ends)
    for number, (model, method) in enumerate([(first[0], "encoder"), (one, "encoder"), (one, "epsilon")]):
        config = started_from(model, method=method, retain_budget=1.1)
        folders = Workdir(tmp_path / f"request_{number}", config)
        monkeypatch.setattr(unlearning, "retain_budget", lambda *_: None)
        unlearning.unlearned_params(config, folders, newer, Split(*2 * [open_digits("test", 16)]))
    assert taught[0] is None  # the model that is unlearned
    assert len(taught) == 2 + 3  # epsilon has two phases before its own run
    for teacher in taught[1:]:
        jax.tree.map(np.testing.assert_array_equal, teacher, first[1])
