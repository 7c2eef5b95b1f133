"""Latent diffusion from nothing to an unlearned model: nothing outside `models/` knows the family."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from l2l_jax.config import parse_config
from l2l_jax.data.sources import open_source
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.unlearn import unlearned_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.weights.loading import load_model
from tests.train.families import MODELS

TRAINING = dict(steps=3, batch_size=8, learning_rate=1e-3, warmup_steps=1)


@pytest.mark.slow
def test_from_pretraining_to_an_adapter_on_cached_latents(one_device, tmp_path):
    model = MODELS["latent_diffusion"]
    unlearn = dict(method="whole", adapter="lora", adapter_rank=2, adapter_layers="attention", token_bank=2)
    config = parse_config(
        {
            "model": {"family": "latent_diffusion", **dataclasses.asdict(model)},
            "data": dict(source="digits", forget="1", retain="0", train_per_class=16),
            "pretrain": {"vae": TRAINING, "model": TRAINING},
            "unlearn": unlearn | TRAINING,
        }
    )
    source, folders = open_source(config.data, "train", 8), Workdir(tmp_path, config)
    original = original_params(config, folders, source)
    unlearned_params(config, folders, original, training_sets(config, source))
    codes = np.load(folders.unlearn / "bank/noise.npy")
    assert codes.shape == (2, 16, *model.code.shape) and np.any(codes[0] != codes[1])
    (before, first), (after, last) = (load_model(path) for path in (folders.pretrained, folders.unlearned))
    assert before == after == config.model
    first, last = (flatten_dict(params, sep="/") for params in (first, last))
    changed = {name for name in first if np.any(first[name] != last[name])}
    adapted = {
        name for name in first if name.split("/")[-2:-1] and name.split("/")[-2] in model.attention_layers
    }
    assert changed == {name for name in adapted if name.endswith("kernel") and not name.startswith("vae")}
