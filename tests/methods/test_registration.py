"""A method from outside the package."""

import sys

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.methods import METHODS
from l2l_jax.train.unlearning_config import UnlearningConfig
from tests.fixtures.linear import BATCH, LINEAR, STUDENT, TEACHER
from tests.fixtures.steps import prepared, step

MODULE = '''
import dataclasses

from l2l_jax.losses import unlearning_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images


@register("darken")
@dataclasses.dataclass(frozen=True)
class Darken(Method):
    """Send the outputs on forget images to a constant.

    Attributes:
      brightness: The constant.
    """

    brightness: float = 0.0

    def objective(self, model) -> Objective:
        def prepare(frozen, batch, rng, axis_name=None):
            return corrupt_images(model, frozen, batch, rng, axis_name)

        def loss(trained, frozen, inputs, alpha):
            student = {**frozen, **trained}
            retain, forget = (model.predict(student, inputs[of]["corrupted"]) for of in ("retain", "forget"))
            teacher = model.predict(frozen, inputs["retain"]["corrupted"])
            return unlearning_loss(retain, teacher, forget, 0 * forget + self.brightness, alpha=alpha)

        parts = model.generative_parts
        return unlearning_objective(model, parts, prepare, loss, teacher=parts)
'''


@pytest.fixture
def darken(tmp_path, monkeypatch):
    (tmp_path / "darkening.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))
    monkeypatch.setitem(sys.modules, "darkening", None)
    del sys.modules["darkening"]
    __import__("darkening")
    return METHODS["darken"]


def test_it_is_trained_as_the_built_in_ones(darken):
    objective = darken(brightness=0.5).objective(LINEAR)
    inputs = prepared(objective, TEACHER, BATCH)
    metrics, gradient = step(objective, STUDENT, TEACHER, inputs, 0.25)
    outputs = [
        np.asarray(inputs[of]["corrupted"], float) @ params["encoder"] @ params["decoder"]
        for of, params in (("retain", STUDENT), ("retain", TEACHER), ("forget", STUDENT))
    ]
    terms = np.square(outputs[0] - outputs[1]).mean(), np.square(outputs[2] - 0.5).mean()
    np.testing.assert_allclose([metrics["retain"], metrics["forget"]], terms, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], terms[0] + 0.25 * terms[1], rtol=1e-5)
    assert all(np.any(x) for x in jax.tree.leaves(gradient))


def test_a_config_takes_it_with_its_options(darken):
    config = UnlearningConfig(10, 4, 1e-3, method="darken", methods={"darken": darken(brightness=1.0)})
    assert config.options == darken(brightness=1.0)
    assert config.objective(LINEAR).trained == ("encoder", "decoder")


def test_without_its_module_the_nearest_name_is_given():
    with pytest.raises(UserError, match="There is no method 'max-loss'. Did you mean 'max_loss'"):
        METHODS["max-loss"]
