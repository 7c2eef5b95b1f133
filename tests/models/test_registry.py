"""Model families: built-in families, and a family registered by a user's module."""

import dataclasses

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models.base import FAMILIES
from l2l_jax.models.mae.model import MAE
from l2l_jax.utils.registry import Registry
from l2l_jax.weights.loading import load_model
from l2l_jax.weights.saved_models import save_model
from l2l_jax.weights.transfer import export_model
from tests.models.test_mae import TINY, tiny_params


def test_user_defined_family_can_be_saved_and_loaded(tmp_path, monkeypatch):
    """examples/plugins.py has a family that can also be trained."""
    monkeypatch.setattr(FAMILIES, "_classes", dict(FAMILIES._classes))

    @FAMILIES.register("plain")
    @dataclasses.dataclass(frozen=True)
    class Plain(MAE):
        FORMATS = ()

    model = Plain(**vars(TINY))
    params = tiny_params()
    save_model(tmp_path / "saved", params, {"family": "plain", "model": model.as_fields()})
    loaded, again = load_model(tmp_path / "saved")
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(UserError, match="a plain model, which has no PyTorch format; known: mae, mage"):
        export_model(tmp_path / "saved", tmp_path / "out.safetensors")


@pytest.mark.parametrize("family", [*FAMILIES])
def test_default_sizes_are_published_sizes_and_variants_are_valid(family):
    cls = FAMILIES[family]
    formats, defaults = cls.FORMATS[0].published, cls().as_fields()

    def sizes(fields):
        return {name: value for name, value in fields.items() if not name.startswith("pixel")}

    assert not formats or any(sizes(fields).items() <= defaults.items() for fields in formats.values())
    for name, fields in cls.VARIANTS.items():
        assert fields.items() <= formats[name].items()
        cls(**fields)


def test_duplicate_name_is_rejected():
    shapes = Registry("shape")
    shapes.register("square")(int)
    with pytest.raises(ValueError, match="already registered by int"):
        shapes.register("square")(float)
