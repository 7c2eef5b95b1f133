"""What `experiment` makes of a method with phases and of a retain budget."""

import json

import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data.arrays import open_digits
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.inpaint import Inpainter, masked_errors
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.budget import retain_budget, validation_images
from l2l_jax.experiment.phase import TrainingPhase, training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods.epsilon import Constrained
from l2l_jax.weights.saved_models import read_card


def config_of(**fields):
    fields = {"audit.enabled": False, "unlearn.retain_budget": 0.0, **fields}
    return parse_config(override(read_config("digits_mae:encoder"), fields))


@pytest.fixture
def trained(monkeypatch):
    """Phases that were to be trained, by folder; each logs a forget loss that falls by 1 a step."""
    runs = {}

    def train(phase, name, sets, params, folder, devices, **run):
        runs[folder.name] = phase, params, run
        folder.mkdir(parents=True, exist_ok=True)
        start = {"phase_1a": 100, "phase_1b": 200}.get(folder.name, 0)
        rows = ({"step": n, "retain": 7.0, "forget": start - n} for n in range(1, phase.training.steps + 1))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"encoder": np.zeros(1)}

    monkeypatch.setattr(TrainingPhase, "train", train)
    return runs


def test_the_phases_find_the_range_of_epsilon(trained, tmp_path):
    """40 steps: the last tenth are the steps 37 to 40, whose mean is 38.5."""
    fields = {"method": "epsilon", "epsilon": {"epsilon_ratio": 0.25}, "steps": 40, "warmup_steps": 2}
    config = config_of(**{f"unlearn.{name}": value for name, value in fields.items()})
    folders = Workdir(tmp_path, config)
    original = {"encoder": np.ones(1), "decoder": np.ones(2)}
    unlearning.unlearned_params(config, folders, original, Split(*2 * [open_digits("test", 16)]))
    assert list(trained) == ["phase_1a", "phase_1b", "unlearn"]
    rules = [phase.objective.rule for phase, *_ in trained.values()]
    bounds = (100 - 38.5, 200 - 38.5)
    assert rules == [Constrained("forget"), Constrained("retain"), Constrained("forget", bounds)]
    assert trained["phase_1a"][0].training.log_every == 1
    own, _, run = trained["unlearn"]
    assert own.training == config.unlearn and run["alpha"] == 0.75
    assert all(params is original for _, params, _ in trained.values())
    assert read_card(folders.unlearned)["phases"]["phase_1b"] == {"retain": 7.0, "forget": bounds[1]}


def test_a_budget_needs_validation_images():
    config = config_of(**{"unlearn.retain_budget": 1.1, "data.validation_fraction": 0.0})
    with pytest.raises(UserError, match="config.data.validation_fraction is 0, so that there are no"):
        retain_budget(config)


def test_validation_images_are_spread_over_the_set():
    config = config_of()
    source = validation_sets(config.data, open_source(config.data, "validation", 16)).retain
    images = validation_images(config, 10)
    assert {of: len(x) for of, x in images.items()} == {"retain": 10, "forget": 10}
    for place, image in zip(np.linspace(0, len(source) - 1, 10).astype(int), images["retain"], strict=True):
        np.testing.assert_allclose(image, source[place]["image"], atol=1e-6)


@pytest.mark.slow
def test_a_budgeted_run_says_what_it_cost(one_device, tmp_path):
    """The ratio on the model's card is that of the models on disk, restored by the program's own way."""
    fields = {"retain_budget": 1.3, "steps": 12, "warmup_steps": 1, "budget_every": 4, "batch_size": 16}
    fields = {f"unlearn.{name}": value for name, value in fields.items()}
    config = config_of(**fields, **{"model.scan": True, "data.validation_fraction": 0.05})
    folders = Workdir(tmp_path, config)
    train = open_source(config.data, "train", 16)
    original, sets = original_params(config, folders, train), training_sets(config, train)
    params = unlearning.unlearned_params(config, folders, original, sets)
    facts = read_card(folders.unlearned)["retain_budget"]
    validation = validation_sets(config.data, open_source(config.data, "validation", 16))
    task = parse_tasks(config.evaluate.tasks)[0]
    inpainter = Inpainter(config.model, task, batch_size=config.evaluate.batch_size, seed=config.seed)
    for of, source in validation._asdict().items():
        before, after = (masked_errors(config, p, source, inpainter) for p in (original, params))
        assert facts["images"][of] == len(before) < 200  # all there are
        assert facts[of]["value"] == pytest.approx(after.mean() / before.mean(), rel=1e-3)
        assert facts[of]["low"] < facts[of]["value"] < facts[of]["high"]
    assert facts["met"] == (facts["retain"]["value"] <= 1.3)
    assert facts["step"] in (4, 8, 12)
