"""Random weights of feature networks have the keys and shapes of the published files, and can be opened."""

import pytest

from benchmarks import random_networks
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
