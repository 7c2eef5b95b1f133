"""Unlearning: phases, retain budgets, sequences of requests, and files in the workdir."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from l2l_jax.config import parse_config
from l2l_jax.data.arrays import open_digits
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.budget import budget_reference, first_of_line, validation_images
from l2l_jax.experiment.phase import TrainingPhase, training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.unlearn import unlearned_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods.epsilon import Constrained
from l2l_jax.weights.adapters import FILE, with_adapter
from l2l_jax.weights.loading import load_model
from l2l_jax.weights.saved_models import load_params, read_card, save_model
from tests.fixtures.configs import SMALL, digits_config
from tests.matrix import soak
from tests.train.families import MODELS, params_of

SETS = Split(*2 * [open_digits("test", 16)])


def unlearning_of(**fields):
    return {f"unlearn.{name}": value for name, value in fields.items()}


@pytest.fixture
def trained(monkeypatch):
    """Record the trained phases in order; each logs a forget loss that decreases by 1 per step."""
    runs = []

    def train(phase, name, sets, params, folder, devices, **run):
        runs.append((folder.name, phase, params, run))
        folder.mkdir(parents=True, exist_ok=True)
        start = {"phase_1a": 100, "phase_1b": 200}.get(folder.name, 0)
        rows = ({"step": n, "retain": 7.0, "forget": start - n} for n in range(1, phase.training.steps + 1))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return params

    monkeypatch.setattr(TrainingPhase, "train", train)
    return runs


def test_phases_determine_the_range_of_epsilon(trained, tmp_path):
    """40 steps: the last tenth are the steps 37 to 40, whose mean is 38.5."""
    fields = unlearning_of(method="epsilon", epsilon={"epsilon_ratio": 0.25}, steps=40, warmup_steps=2)
    config = digits_config(fields)
    folders = Workdir(tmp_path, config)
    original = {"encoder": np.ones(1), "decoder": np.ones(2)}
    unlearned_params(config, folders, original, SETS)
    names, phases, params, runs = zip(*trained, strict=True)
    assert names == ("phase_1a", "phase_1b", "unlearn")
    bounds = (100 - 38.5, 200 - 38.5)
    rules = [Constrained("forget"), Constrained("retain"), Constrained("forget", bounds)]
    assert [phase.objective.rule for phase in phases] == rules
    assert phases[0].training.log_every == 1
    assert phases[2].training == config.unlearn and runs[2]["alpha"] == 0.75
    assert all(x is original for x in params)
    assert read_card(folders.unlearned)["phases"]["phase_1b"] == {"retain": 7.0, "forget": bounds[1]}


@pytest.fixture
def first(tmp_path):
    config = digits_config()
    params = original_params(config, Workdir(tmp_path / "run", config), None)
    save_model(tmp_path / "first", params, config.describe("family", "model"))
    return tmp_path / "first", params


def started_from(model, **unlearn):
    return digits_config({"model.pretrained": str(model), **unlearning_of(**unlearn)})


def unlearned_from(model, folder, **unlearn):
    """Return the folder of a model whose metadata says that it was unlearned from another one."""
    config = started_from(model, **unlearn)
    folders = Workdir(folder, config)
    unlearned_params(config, folders, original_params(config, folders, None), SETS)
    return folders.unlearned


def test_every_model_of_a_sequence_names_the_first(first, trained, tmp_path):
    one = unlearned_from(first[0], tmp_path / "1")
    two = unlearned_from(one, tmp_path / "2")
    assert [first_of_line(model) for model in (first[0], one, two)] == [str(first[0])] * 3
    assert read_card(two)["first_original"] == str(first[0])
    assert first_of_line("digits_mae") == "digits_mae"

    reference = budget_reference(started_from(two), two, first_of_line(two))
    jax.tree.map(np.testing.assert_array_equal, reference["encoder"], first[1]["encoder"])
    # The reference of the first model is the unlearned model: itself.
    assert budget_reference(started_from(first[0]), first[0], str(first[0])) is None
    assert budget_reference(digits_config(), "digits_mae", "digits_mae") is None

    shutil.move(first[0], tmp_path / "moved")
    sentence = "relative to .*first, the first original model: .*budget_original=PATH"
    with pytest.raises(UserError, match=sentence):
        budget_reference(started_from(two), two, first_of_line(two))
    config = started_from(two, budget_original=str(tmp_path / "moved"))
    assert budget_reference(config, two, first_of_line(two)) is not None


def test_later_requests_imitate_the_first_model(first, trained, tmp_path, monkeypatch):
    """The cost of a request is relative to the first model, not to the previous request."""
    one = unlearned_from(first[0], tmp_path / "1")
    newer = jax.tree.map(lambda x: x + 1, first[1])
    save_model(one, newer, read_card(one))
    trained.clear()
    monkeypatch.setattr(unlearning, "retain_budget", lambda *_: None)
    for number, (model, method) in enumerate([(first[0], "encoder"), (one, "encoder"), (one, "epsilon")]):
        unlearned_from(model, tmp_path / f"request_{number}", method=method, retain_budget=1.1)
    teachers = [run["teacher"] for *_, run in trained]
    assert teachers[0] is None  # the unlearned model itself
    assert len(teachers) == 2 + 3  # epsilon has two phases before its own run
    for teacher in teachers[1:]:
        jax.tree.map(np.testing.assert_array_equal, teacher, first[1])


def test_validation_images_are_evenly_spaced():
    config = digits_config()
    source = validation_sets(config.data, open_source(config.data, "validation", 16)).retain
    images = validation_images(config, 10)
    assert {split: len(x) for split, x in images.items()} == {"retain": 10, "forget": 10}
    for place, image in zip(np.linspace(0, len(source) - 1, 10).astype(int), images["retain"], strict=True):
        np.testing.assert_allclose(image, source[place]["image"], atol=1e-6)
    with pytest.raises(UserError, match="config.data.validation_fraction is 0, so there are no"):
        validation_images(digits_config({"data.validation_fraction": 0.0}), 10)


@pytest.mark.slow
def test_adapter_with_a_budget_and_without_retain_images(one_device, tmp_path):
    """It changes only kernels of the encoder, and the ratio in the metadata matches the stored models."""
    fields = unlearning_of(adapter="lora", adapter_rank=2, steps=3, batch_size=8, warmup_steps=1)
    fields |= unlearning_of(retain_budget=1.3, budget_every=1)
    fields |= {"data.retain_images": "generated", "data.generated_count": 10, "evaluate.batch_size": 8}
    config = digits_config({**fields, **SMALL, "data.validation_fraction": 0.05})
    save_model(tmp_path / "given", params_of(config.model), config.describe("family", "model"))
    config = dataclasses.replace(config, pretrained=str(tmp_path / "given"))
    source, folders = open_source(config.data, "train", 16), Workdir(tmp_path, config)
    original, sets = original_params(config, folders, source), training_sets(config, source)
    assert set(sets.forget.labels) == {5, 6, 7, 8, 9} and sets.retain.class_names == ("noise",)
    unlearned = unlearned_params(config, folders, original, sets)
    assert np.load(tmp_path / "generated" / "images.npy").shape == (10, 16, 16, 3)
    for same in (
        load_params(folders.unlearned, original),
        with_adapter(folders.unlearned / FILE, original, "mae", config.model),
        unlearned_params(config, folders, original, sets),  # loaded from the workdir
    ):
        jax.tree.map(np.testing.assert_array_equal, same, unlearned)
    before, after = (flatten_dict(params, sep="/") for params in (original, unlearned))
    changed = {name for name in before if np.any(before[name] != after[name])}
    kernels = {name for name in before if name.startswith("encoder") and name.endswith("kernel")}
    assert changed == kernels and len(kernels) == 1 + 4  # patch embedding and one block

    facts = read_card(folders.unlearned)["retain_budget"]
    validation = validation_sets(config.data, open_source(config.data, "validation", 16))
    for split, images in validation._asdict().items():
        old, new = (masked_errors(config, params, images) for params in (original, unlearned))
        assert facts["images"][split] == len(old) < 200  # all available images
        assert facts[split]["value"] == pytest.approx(new.mean() / old.mean(), rel=1e-3)
        assert facts[split]["low"] < facts[split]["value"] < facts[split]["high"]
    assert facts["met"] == (facts["retain"]["value"] <= 1.3) and facts["step"] in (1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mage", soak("latent_diffusion")])
def test_adapter_trains_on_cached_codes(family, one_device, tmp_path):
    """In every run, train/test_token_cache.py covers a cache of latents."""
    model = MODELS[family]
    save_model(tmp_path / "given", params_of(model), {"family": family, "model": model.as_fields()})
    unlearn = dict(method="encoder", adapter="lora", adapter_rank=2, adapter_layers="attention", token_bank=2)
    unlearn |= dict(steps=3, batch_size=8, learning_rate=1e-3, warmup_steps=1)
    unlearn |= dict(noise_bank=24) if family == "mage" else {}
    data = dict(source="digits", forget="1", retain="0", train_per_class=16)
    raw_config = {"model": {"pretrained": str(tmp_path / "given")}, "data": data, "unlearn": unlearn}
    config = parse_config(raw_config)
    source, folders = open_source(config.data, "train", 8), Workdir(tmp_path, config)
    original = original_params(config, folders, source)
    unlearned_params(config, folders, original, training_sets(config, source))
    assert np.load(folders.unlearn / "bank/retain.npy").shape == (2, 16, *model.code.shape)
    loaded, unlearned = load_model(folders.unlearned)
    assert loaded == config.model == model
    before, after = (flatten_dict(params, sep="/") for params in (original, unlearned))
    changed = {name for name in before if np.any(before[name] != after[name])}
    names = [name.split("/") for name in before if name.startswith("encoder") and name.endswith("kernel")]
    assert changed == {"/".join(name) for name in names if name[-2] in model.attention_layers}
