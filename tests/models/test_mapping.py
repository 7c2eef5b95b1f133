"""Conversion of weights with synthetic tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.mapping import Constant, Table

TABLE = Table(
    {
        "encoder/special_{i}": "blocks.{i}.special",
        "encoder/block_{i}_{j}": "blocks.{i}.{j}",
        "encoder/{name}": "{name}",
    },
    (Constant("table", lambda size: np.linspace(0, 1, size, dtype=np.float32), "Resized?"),),
    r"head\..*|.*\.num_batches_tracked",
)
TARGET = {
    "encoder": {
        "special_0": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)},
        "block_10_1": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32)},
        "token": jax.ShapeDtypeStruct((4,), np.float32),
    }
}


def state_dict():
    return {
        "blocks.0.special.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "blocks.10.1.weight": -np.arange(6, dtype=np.float32).reshape(2, 3),
        "token": np.ones(4, np.float32),
        "table": np.linspace(0, 1, 5, dtype=np.float32),
    }


def test_conversion_round_trip():
    params = mapping.to_flax(TABLE, state_dict(), TARGET, 5)
    kernel = params["encoder"]["block_10_1"]["kernel"]
    assert kernel[2, 1] == -5  # input 2, output 1
    back = mapping.to_torch(TABLE, params, 5)
    assert back.keys() == state_dict().keys()
    for key, value in state_dict().items():
        np.testing.assert_array_equal(back[key], value, strict=True)
        assert back[key].flags.c_contiguous


def test_mismatch_lists_unexpected_and_missing_keys():
    wrong = state_dict() | {"surplus": np.zeros(1, np.float32)}
    del wrong["token"]
    with pytest.raises(UserError, match=r"Unexpected keys: surplus\..*Missing keys: token\."):
        mapping.to_flax(TABLE, wrong, TARGET, 5)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (6,), (2, 4)])
def test_wrong_shapes_are_listed_with_expected_shapes(shape):
    wrong = state_dict() | {"blocks.0.special.weight": np.zeros(shape, np.float32)}
    with pytest.raises(UserError) as error:
        mapping.to_flax(TABLE, wrong, TARGET, 5)
    assert f"blocks.0.special.weight {shape}, not (2, 3)" in str(error.value)


def test_ignored_keys_are_dropped_on_import_and_not_exported():
    more = {"head.weight": np.zeros(9, np.float32), "bn.num_batches_tracked": np.zeros((), np.int64)}
    params = mapping.to_flax(TABLE, state_dict() | more, TARGET, 5)
    assert mapping.to_torch(TABLE, params, 5).keys() == state_dict().keys()


def test_constant_must_match_if_present():
    without = state_dict()
    table = without.pop("table")
    mapping.to_flax(TABLE, without, TARGET, 5)
    for wrong, complaint in (
        (table.astype(np.int8), "is int8; expected float32, float16, bfloat16"),
        (table + np.float32(1e-3), "is not the fixed table of this model. Resized"),
        (np.full_like(table, np.nan), "holds NaN or infinite values"),
        (np.zeros_like(table), "is all zeros"),
        (table[:4], r"has shape \(4,\), and this model's table \(5,\)"),
    ):
        with pytest.raises(UserError, match=f"table {complaint}"):
            mapping.to_flax(TABLE, without | {"table": wrong}, TARGET, 5)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("stored", [None, np.float32])
def test_constant_rounded_to_half_precision_is_accepted(dtype, stored):
    """This includes float32 files with values that were previously float16 or bfloat16."""
    table = np.linspace(0, 1, 50, dtype=np.float32).astype(dtype)
    rounded = state_dict() | {"table": table if stored is None else table.astype(stored)}
    mapping.to_flax(TABLE, rounded, TARGET, 50)


def test_export_in_half_precision_keeps_exact_constants():
    params = mapping.to_flax(TABLE, state_dict(), TARGET, 5)
    more = Constant("exact", lambda size: np.ones(size, np.float32), exact=True)
    exact = TABLE._replace(constants=(*TABLE.constants, more))
    dtypes = {key: x.dtype for key, x in mapping.to_torch(exact, params, 5, np.float16).items()}
    assert dtypes == {key: np.float16 for key in state_dict()} | {"exact": np.float32}


def test_parameter_missing_from_the_table_raises_value_error():
    with pytest.raises(ValueError, match="decoder/unknown"):
        mapping.to_torch(TABLE, {"decoder": {"unknown": np.zeros(1)}}, 5)


def test_no_value_is_read_before_shapes_are_checked():
    class Unreadable:
        shape = (7,)

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("was read")

    with pytest.raises(UserError, match="token"):
        mapping.to_flax(TABLE, {key: Unreadable() for key in state_dict()}, TARGET, 5)
