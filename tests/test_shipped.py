"""The models shipped with the package match their metadata."""

import functools
import hashlib
import json
import pathlib

import numpy as np
import pytest

from l2l_jax import shipped
from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data import arrays
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.inpaint import Inpainter, masked_errors
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.experiment.pretrain import FAIR_RATIO, original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.weights.loading import load_pretrained, original_weights
from tests.matrix import cells, soak

FASHION = ("fashion_mae", "fashion_vqgan", "fashion_diffusion")
CONFIGS = ("digits_mae", "digits_vqgan", "digits_diffusion", *FASHION)
WITH_RETRAINED = ("digits_mae", *FASHION)


def config_of(name, **fields):
    return parse_config(override(read_config(name), fields))


def test_each_config_has_a_model():
    assert set(shipped.names()) == {*CONFIGS, *(name + shipped.RETRAINED for name in WITH_RETRAINED)}
    files = [shipped.resolved(name) for name in shipped.names()]
    data = [*arrays.FASHION.iterdir(), arrays.DIGITS]
    assert sum(len(file.read_bytes()) for file in (*files, *data)) <= 14_000_000
    for name, file in zip(shipped.names(), files, strict=True):
        card = shipped.card(name)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == card["sha256"]
        config = json.loads(json.dumps(config_of(name.removesuffix(shipped.RETRAINED)).describe()))
        assert card["model"].items() <= config["model"].items()  # fields may have been added since
        for stage, training in card["pretrain"].items():
            del training["checkpoint_every"], training["log_every"]
            assert training.items() <= config["pretrain"][stage].items()


@pytest.fixture(scope="module")
def errors(one_device):
    """`(config, suffix of a model's name, set)` → masked MSE of each image; compiled once per config."""

    @functools.cache
    def opened(name):
        config = config_of(name)
        test = evaluation_sets(config.data, open_source(config.data, "test", config.model.image_size))
        held_out = open_source(config.data, "validation", config.model.image_size)
        sets = test._asdict() | {"validation": validation_sets(config.data, held_out).retain}
        task, batch_size = parse_tasks(config.evaluate.tasks)[0], config.evaluate.batch_size
        return config, sets, Inpainter(config.model, task, batch_size=batch_size, seed=config.seed)

    @functools.cache
    def params(name, end):
        config = opened(name)[0]
        return load_pretrained(shipped.resolved(name + end), config.family, config.model)

    def find(name, end, split):
        config, sets, inpainter = opened(name)
        return masked_errors(config, params(name, end), sets[split], inpainter, split)

    return find


# Every run inpaints with the fastest model; tests/models compares the others with the released code.
NORMAL = [("digits_mae", "retain"), ("digits_mae", "forget")]


@pytest.mark.parametrize("name, split", cells(CONFIGS, ("retain", "forget"), normal=NORMAL))
def test_metrics_match_the_metadata(name, split, errors):
    """Masked MSE on test images; the retrained model does not reconstruct the forget set."""
    ends = ("", shipped.RETRAINED) if name in WITH_RETRAINED else ("",)
    errors_by_model = {end: errors(name, end, split).mean() for end in ends}
    for end, error in errors_by_model.items():
        expected = shipped.card(name + end)["test_metrics"][split]["mse"]
        np.testing.assert_allclose(error, expected, rtol=0.02, err_msg=name + end)
    if split == "forget" and name in WITH_RETRAINED:
        assert errors_by_model[shipped.RETRAINED] > 1.25 * errors_by_model[""]


# One model in every run, as above
@pytest.mark.parametrize("name", [WITH_RETRAINED[0], *map(soak, WITH_RETRAINED[1:])])
def test_retrained_model_matches_the_original_on_the_retain_set(name, errors):
    original, retrained = (errors(name, end, "validation").mean() for end in ("", shipped.RETRAINED))
    assert retrained / original <= FAIR_RATIO


def test_metadata_of_retrained_model_has_the_spread_over_seeds():
    """After the attacks of the config's audit: forget errors differ by 3 to 50%."""
    shots, seeds = (
        config_of("digits_mae").audit.relearning.shots,
        shipped.card("digits_mae_retrained")["seeds"],
    )
    attacks = ["no_attack", "retain_tuning", "fresh_decoder_retain", "fresh_decoder_all"]
    assert seeds["count"] >= 3
    for attack in attacks + [f"relearning_{count}" for count in shots]:
        assert 0.03 < seeds["spread"][attack]["error"] < 0.5


def test_configs_start_from_shipped_models(tmp_path):
    for name in CONFIGS:
        assert config_of(name).pretrained == name
    config = config_of("digits_mae", **{"data.source": "folder", "data.path": str(tmp_path)})
    with pytest.raises(UserError, match="a model of digits images, but config.data.source is 'folder'"):
        original_params(config, Workdir(tmp_path, config), None)


def test_report_names_the_model_and_unknown_names_are_rejected():
    facts = original_weights(shipped.resolved("digits_mae"))
    assert facts["origin"] == "the shipped model digits_mae" and facts["licence"] == "Apache-2.0"
    assert facts["sha256"] == hashlib.sha256(shipped.resolved("digits_mae").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="no shipped model 'digits'; available: digits_diffusion, "):
        shipped.card("digits")
    assert shipped.resolved("runs/digits_mae/pretrained") == pathlib.Path("runs/digits_mae/pretrained")
