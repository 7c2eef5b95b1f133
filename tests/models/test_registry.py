"""Model families: the built-in ones, and one that a user's module adds."""

import dataclasses
import importlib
import textwrap

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models.base import FAMILIES
from l2l_jax.weights.loading import load_model
from l2l_jax.weights.saved_models import save_model
from l2l_jax.weights.transfer import export_model

MEAN_MODEL = '''
import dataclasses

import jax
import jax.numpy as jnp

from l2l_jax.models.base import Model, register


@register("mean")
@dataclasses.dataclass(frozen=True)
class Mean(Model):
    """Fill the mask with the mean of the visible pixels, scaled."""

    image_size: int = 4
    channels: int = 1
    value_range: tuple[float, float] = (0.0, 1.0)
    depth: int = 2

    VARIANTS = {"deep": {"depth": 8}}

    def init(self, rng):
        return {"encoder": {"scale": jnp.ones(self.depth)}, "decoder": {"shift": jnp.zeros(())}}

    def corrupt(self, params, images, rng, axis_name=None):
        return images * jax.random.bernoulli(rng, 0.5, images.shape)

    def encode(self, encoder_params, corrupted):
        return corrupted.mean((1, 2, 3)) * encoder_params["scale"].mean()

    def predict(self, params, corrupted):
        return self.encode(params["encoder"], corrupted) + params["decoder"]["shift"]

    def prediction_loss(self, predicted, images, corrupted):
        return jnp.square(predicted - images.mean((1, 2, 3)))

    def imitation_loss(self, predicted, corrupted, target):
        return jnp.square(predicted - target)

    def with_truth(self, params, images, corrupted, truth):
        return truth, corrupted

    def inpaint(self, params, images, mask, rng):
        visible = jnp.where(mask[None, ..., None], 0, images)
        filling = self.predict(params, visible) * mask.size / (~mask).sum()
        return jnp.where(mask[None, ..., None], filling[:, None, None, None], images)
'''


@pytest.fixture
def mean_model(tmp_path, monkeypatch):
    """A family registered by a module outside the package."""
    (tmp_path / "mean_model.py").write_text(textwrap.dedent(MEAN_MODEL))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FAMILIES, "_classes", dict(FAMILIES._classes))
    importlib.import_module("mean_model")
    return FAMILIES["mean"]()


def test_a_family_from_outside_is_saved_loaded_and_used(mean_model, tmp_path):
    model = dataclasses.replace(mean_model, depth=3)
    card = {"family": "mean", "model": dataclasses.asdict(model), "origin": "made here"}
    save_model(tmp_path / "saved", jax.device_get(model.init(jax.random.key(0))), card)
    loaded, params = load_model(tmp_path / "saved")
    assert loaded == model and FAMILIES["mean"].VARIANTS["deep"] == {"depth": 8}
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    images = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    filled = loaded.inpaint(params, images, mask, jax.random.key(0))
    np.testing.assert_allclose(filled[:, 1, 1, 0], images[:, ~mask, 0].mean(1), rtol=1e-5)
    (stage,) = loaded.pretraining_stages()
    inputs = stage.prepare({}, images, jax.random.key(1))
    assert stage.loss(params, inputs).shape == (2,)
    with pytest.raises(UserError, match="mean model, which has no PyTorch format; known: mae, mage, palette"):
        export_model(tmp_path / "saved", tmp_path / "out.safetensors")


@pytest.mark.parametrize("family", [*FAMILIES])
def test_defaults_are_the_published_sizes_and_variants_fit(family):
    cls = FAMILIES[family]
    formats = cls.FORMATS[0].published
    assert any(cls(**fields).shapes() == cls().shapes() for fields in formats.values())
    for name, fields in cls.VARIANTS.items():
        assert fields.items() <= formats[name].items()
        cls(**fields)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UserError, match="no model family 'palete'. Did you mean 'palette'"):
        FAMILIES["palete"]
