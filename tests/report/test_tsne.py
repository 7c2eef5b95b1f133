"""t-SNE keeps similar groups together; drawing is tested in test_evaluate.py."""

import numpy as np
import pytest

from l2l_jax.report import plots


@pytest.fixture(scope="module")
def embeddings():
    """Return embeddings: retain images close to their reconstructions, forget images apart from theirs."""
    rng = np.random.default_rng(0)
    centres = np.eye(8)[[0, 0, 1, 2]] * 5
    names = ["retain, images", "retain, unlearned", "forget, images", "forget, unlearned"]
    return {name: rng.normal(size=(15, 8)) * 0.3 + c for name, c in zip(names, centres, strict=True)}


def test_similar_groups_stay_together(embeddings):
    places = plots.project(embeddings)
    assert {name: place.shape for name, place in places.items()} == dict.fromkeys(embeddings, (15, 2))
    middle = {name: place.mean(axis=0) for name, place in places.items()}

    def apart(first, second):
        return np.linalg.norm(middle[first] - middle[second])

    assert apart("retain, images", "retain, unlearned") < 0.5 * apart("retain, images", "forget, images")
    assert apart("retain, images", "retain, unlearned") < 0.5 * apart("forget, images", "forget, unlearned")


def test_large_groups_are_subsampled_and_too_few_images_rejected(monkeypatch, embeddings):
    monkeypatch.setattr(plots, "PROJECTED", 3)
    assert {len(place) for place in plots.project(embeddings).values()} == {3}
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        plots.project({"retain, images": np.eye(3)})
