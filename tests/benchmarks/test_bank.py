"""The benchmark of the banks: three steps, of which the last holds no tokenizer."""

import dataclasses
import pathlib
import runpy

import pytest

from benchmarks import bank
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import open_phase

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def small(name, variant="runlocal"):
    return parse_config(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant))


def test_what_each_step_is_given():
    config = small("vqgan")
    given = {}
    for name, (token_bank, noise_bank) in bank.BANKS.items():
        how = dataclasses.replace(config.unlearn, token_bank=token_bank, noise_bank=noise_bank)
        stage = open_phase(dataclasses.replace(config, unlearn=how), "unlearn")
        shapes = {of: x.shape for of, x in stage.batch().items()}
        given[name] = ("tokenizer" in stage.objective.frozen, shapes)
    pixels, codes = (16, 16, 16, 3), (16, 64)
    assert given == {
        "online": (True, {"retain": pixels, "forget": pixels}),
        "noise_bank": (True, {"retain": pixels, "forget": pixels, "noise": codes}),
        "token_bank": (False, {"retain": codes, "forget": codes, "noise": codes}),
    }


def test_a_family_without_tokenizer_is_refused():
    with pytest.raises(UserError, match="family is 'mae': this family has no tokenizer"):
        bank.measure(small("mae"), rounds=1)
