"""Random weights of feature networks have the keys and shapes of the published files, and can be opened."""

import numpy as np
import pytest

from benchmarks import random_networks
from l2l_jax.evals.config import NetworksConfig
from l2l_jax.evals.features import clip
from l2l_jax.evals.features.networks import open_networks
from tests.reference_arrays import Case


@pytest.mark.parametrize(
    "case, weights",
    [
        ("inception_fid", random_networks.inception_weights),
        ("resnet50_places", random_networks.resnet50_weights),
    ],
)
def test_keys_and_shapes_are_the_published_ones(case, weights):
    description = Case(case).description
    published = description.get("state_dict") or description["keys"]
    published = {key.removeprefix("module."): tuple(shape) for key, shape, _ in published}
    expected = {key: x for key, x in published.items() if not key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in weights()[0].items()} == expected


@pytest.mark.soak
def test_a_tower_is_the_published_one():
    """In every run evaluation/features/test_clip.py compares towers with the published keys and shapes."""
    state_dict = random_networks.clip_tower("ViT-B/32")
    assert clip.recognize(state_dict)[1] == "ViT-B/32"
    assert sum(value.size for value in state_dict.values()) == 87_849_216  # of transformers' model


@pytest.mark.soak
def test_a_network_is_opened_and_judges_images(tmp_path):
    """In every run evaluation/features/test_networks.py opens such files."""
    file = tmp_path / "resnet50.safetensors"
    random_networks.write("resnet50", file, "ViT-B/32")
    networks, missing = open_networks(
        NetworksConfig(networks=("resnet50",), resnet50=str(file), network_batch_size=2)
    )
    assert not missing
    found = networks["resnet50"](np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8))
    assert np.isfinite(found["features"]).all() and found["features"].std() > 0
