import pytest

from l2l_jax.errors import UserError
from l2l_jax.utils.registry import Registry


def test_registered_classes_are_found_by_name():
    shapes = Registry("shape")

    @shapes.register("square")
    class Square:
        pass

    assert shapes["square"] is Square
    assert list(shapes) == ["square"] and "circle" not in shapes
    assert shapes.name_of(Square) == "square"


def test_unknown_names_are_answered_with_the_nearest_one():
    shapes = Registry("shape")
    shapes.register("square")(int)
    with pytest.raises(UserError, match="no shape 'squre'. Did you mean 'square'"):
        shapes["squre"]
    with pytest.raises(UserError, match="Known: square"):
        shapes["xyz"]


def test_a_name_is_registered_once():
    shapes = Registry("shape")
    shapes.register("square")(int)
    with pytest.raises(ValueError, match="already registered by int"):
        shapes.register("square")(float)
