import pytest

from l2l_jax.utils.registry import Registry


def test_a_name_is_registered_once():
    shapes = Registry("shape")
    shapes.register("square")(int)
    with pytest.raises(ValueError, match="already registered by int"):
        shapes.register("square")(float)
