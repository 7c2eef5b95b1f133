"""What unlearning leaves in a workdir when it trains an adapter, on images that the original model made."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data.sources import open_source
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.weights.adapters import FILE, with_adapter
from l2l_jax.weights.saved_models import load_params


@pytest.mark.slow
def test_an_adapter_without_retain_images(one_device, tmp_path):
    fields = {"adapter": "lora", "adapter_rank": 2, "steps": 2, "batch_size": 8, "warmup_steps": 1}
    fields = {f"unlearn.{name}": value for name, value in fields.items()}
    fields |= {"data.retain_images": "generated", "data.generated_count": 10, "evaluate.batch_size": 8}
    fields |= {"model.scan": True}  # one block is traced for four
    config = parse_config(override(read_config("digits_mae:encoder"), fields))
    source, folders = open_source(config.data, "train", 16), Workdir(tmp_path, config)
    original = original_params(config, folders, source)
    sets = training_sets(config, source)
    assert set(sets.forget.labels) == {5, 6, 7, 8, 9} and sets.retain.class_names == ("noise",)
    unlearned = unlearning.unlearned_params(config, folders, original, sets)
    assert np.load(tmp_path / "generated" / "images.npy").shape == (10, 16, 16, 3)
    for same in (
        load_params(folders.unlearned, original),
        with_adapter(folders.unlearned / FILE, original, "mae", config.model),
        unlearning.unlearned_params(config, folders, original, sets),  # taken from the workdir
    ):
        jax.tree.map(np.testing.assert_array_equal, same, unlearned)
    before, after = (flatten_dict(params, sep="/") for params in (original, unlearned))
    changed = {name for name in before if np.any(before[name] != after[name])}
    kernels = {name for name in before if name.startswith("encoder") and name.endswith("kernel")}
    assert changed == kernels and len(kernels) == 1 + 4 * 4  # of the patches and of four blocks
