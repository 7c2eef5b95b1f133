"""Collectives of compiled programs whose traffic is known by construction."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from l2l_jax.plan.collectives import collectives, summary
from l2l_jax.plan.program import Program


def compiled(function, sizes, rows):
    mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    mapped = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    everywhere = P(("data", "fsdp"))
    program = jax.jit(mapped(function, in_specs=everywhere, out_specs=everywhere))
    return collectives(Program(program.lower(jnp.ones((rows, 6))).compile().as_text()))


def test_size_and_devices_of_each_kind():
    """8 devices have 4 rows of 6 floats each, 96 bytes; four of them have the same index on "data"."""

    def function(x):
        total = jax.lax.psum(x, ("data", "fsdp"))
        gathered = jax.lax.all_gather(x, "fsdp", tiled=True)
        part = jax.lax.psum_scatter(x, "fsdp", tiled=True)
        turned = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
        swapped = jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
        return total + gathered.sum() + part.sum() + turned + swapped

    by_kind = {c.kind: c for c in compiled(function, (2, 4), 32)}
    permuted = by_kind.pop("collective-permute")
    assert {kind: (c.size, c.devices) for kind, c in by_kind.items()} == {
        "all-reduce": (96, 8),
        "all-gather": (4 * 96, 4),
        "reduce-scatter": (96 // 4, 4),
        "all-to-all": (96, 4),
    }
    assert permuted.size == permuted.sent == 96
    sent = {kind: c.sent for kind, c in by_kind.items()}
    assert sent == {
        "all-reduce": 2 * 96 * 7 / 8,
        "all-gather": 4 * 96 * 3 / 4,
        "reduce-scatter": 24 * 3,
        "all-to-all": 96 * 3 / 4,
    }


def test_collectives_in_loops_are_counted_per_iteration():
    def function(x):
        def body(carry, _):
            return jax.lax.psum(jnp.sin(carry), "data"), None

        return jax.lax.scan(body, x, length=5)[0]

    (op,) = compiled(function, (8, 1), 32)
    assert (op.kind, op.size, op.devices, op.repeats) == ("all-reduce", 96, 8, 5)
    assert summary([op]) == {"all-reduce": {"count": 5, "bytes_sent": 5 * 2 * 96 * 7 // 8}}


def test_loop_of_unknown_length_is_an_error():
    def function(x):
        def body(x):
            return jax.lax.psum(jnp.sin(x), "data")

        return jax.lax.while_loop(lambda x: x.sum() > 1, body, x)

    with pytest.raises(ValueError, match="a loop of unknown length"):
        compiled(function, (8, 1), 32)


def test_notations_of_device_groups():
    line = "  %a = f32[8,6]{1,0} all-gather(%p), channel_id=1, replica_groups=%s, dimensions={0}\n"
    for groups, devices in {
        "{{0,1},{2,3},{4,5},{6,7}}": 2,
        "[2,4]<=[8]": 4,
        "mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x','y':(1)2}": 4,
    }.items():
        (op,) = collectives(Program(line.replace("%s", groups)))
        assert (op.devices, op.size) == (devices, 192)
    with pytest.raises(ValueError, match="cannot read the devices of"):
        collectives(Program(line.replace("replica_groups=%s", "nothing")))


def test_split_collective_is_counted_once():
    """The TPU compiler repeats a collective that spans several fusions in each of them, with one channel."""
    line = "  %a.{} = f32[8,6]{{1,0}} all-gather(%p), channel_id={}, replica_groups=[1,8]<=[8]{}\n"
    pieces = "".join(line.format(n, c, ', chain_id="0"') for n, c in enumerate((7, 7, 8, 7)))
    assert [c.size for c in collectives(Program(pieces))] == [192, 192]
    others = "".join(line.format(n, 1, "") for n in range(3))  # the CPU compiler does not number them
    assert len(collectives(Program(others))) == 3
