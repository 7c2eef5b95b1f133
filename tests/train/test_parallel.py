"""The step on one and on eight devices, with every mesh and under pmap: equal results.

Tolerances: the loss terms of 10 steps agree to 1e-3 of their value, the parameters after them to 1.5e-4,
a hundredth of the change by 10 steps of Adam at the rate 1e-3. Rounding differs because sums over the
batch have different orders.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from l2l_jax.errors import UserError
from l2l_jax.methods import METHODS
from l2l_jax.plan.collectives import collectives
from l2l_jax.plan.program import Program
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.step import make_step, placed_state
from tests.matrix import cells
from tests.train.families import MODELS, images_of, params_of

CONFIG = TrainingConfig(steps=40, batch_size=16, learning_rate=1e-3, ema_decay=0.9)
LAYOUTS = {"8x1": ("jit", 8, 1), "4x2": ("jit", 4, 2), "1x8": ("jit", 1, 8), "pmap": ("pmap", 8, 1)}
ACCUMULATE = {"mae": 2}
CELLS = cells(MODELS, LAYOUTS, normal=[("mae", layout) for layout in ("8x1", "4x2", "pmap")])
"""test_token_cache.py trains a MAGE on two devices."""


class Run:
    """A compiled step of a family on a layout, and the results of 10 steps."""

    def __init__(self, family, kind, data, model):
        mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
        parallel, optimizer = make_parallel(mesh, kind), make_optimizer(CONFIG)
        objective = METHODS["encoder"]().objective(MODELS[family])
        params = params_of(MODELS[family])
        config = dataclasses.replace(CONFIG, accumulate=ACCUMULATE.get(family, 1))
        step = make_step(objective, optimizer, config, parallel, seed=3)
        trained = {part: params[part] for part in objective.trained}
        frozen = sharding.place({part: params[part] for part in objective.frozen}, mesh)
        state = placed_state(trained, optimizer, mesh, ema=True, alpha=0.25)
        batches = [parallel.rows(batch) for batch in images_of(family, 10, 16)]
        self.step = parallel.compile(step, state).lower(state, frozen, batches[0]).compile()
        self.first, self.metrics = state.params, []
        for batch in batches:
            state, metrics = self.step(state, frozen, batch)
            self.metrics.append(jax.device_get(metrics))
        self.state = state


@pytest.fixture(scope="module")
def runs():
    by_layout = {}

    def get(family, layout):
        if (family, layout) not in by_layout:
            by_layout[family, layout] = Run(family, *LAYOUTS.get(layout, ("jit", 1, 1)))
        return by_layout[family, layout]

    return get


def comparable(params):
    """Return parameters by path, without biases of keys, which add a constant to a query's logits: the true
    gradient is zero, and Adam turns its rounding errors into full steps in a random direction."""
    flat = {name: np.array(x) for name, x in flatten_dict(jax.device_get(params), sep="/").items()}
    for name, value in flat.items():
        if name.endswith("attn/qkv/bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
        elif name.endswith("qkv/bias"):  # Palette: ordered by head
            value.reshape(-1, 3, 8)[:, 1] = 0
    return flat


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), CELLS)
def test_every_layout_matches_one_device(runs, family, layout):
    one, many = runs(family, "one device"), runs(family, layout)
    for name in one.metrics[0]:
        mine, theirs = ([row[name] for row in run.metrics] for run in (one, many))
        np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-6, err_msg=name)
    for which in ("params", "ema"):
        mine, theirs = (comparable(getattr(run.state, which)) for run in (one, many))
        for name in mine:
            np.testing.assert_allclose(theirs[name], mine[name], atol=1.5e-4, err_msg=name)


@pytest.mark.parametrize(("family", "layout"), CELLS)
def test_no_row_of_a_batch_leaves_its_device(runs, family, layout):
    """Devices only reduce gradients and scalars, and gather split parameters."""
    run, ways = runs(family, layout), LAYOUTS[layout][2]
    operations = collectives(Program(run.step.as_text()))
    params = [x.shape for x in jax.tree.leaves(run.first)]
    split = [s for s in params if sharding.parameter_spec(s, ways) != P()]
    assert bool(split) == (ways > 1)
    assert {c.kind for c in operations} == ({"all-reduce", "all-gather"} if split else {"all-reduce"})
    gathered = [shape for c in operations if c.kind == "all-gather" for shape in c.shapes]
    teacher = split  # the frozen encoder has the same shapes
    assert sorted(set(gathered)) == sorted(set(split)) and len(gathered) == len(split + teacher)
    sizes = {math.prod(s) for s in params} | {math.prod(s) // n for s in split for n in (2, 4, 8)}
    sizes |= {1, 2}  # metrics, and both loss terms together
    summed = [math.prod(shape) for c in operations if c.kind == "all-reduce" for shape in c.shapes]
    assert set(summed) <= sizes
    if ways == 1:  # every gradient is reduced once (under jit once per accumulated part), and some scalars
        parts = ACCUMULATE.get(family, 1) if layout == "8x1" else 1
        elements = sum(c.size * c.repeats for c in operations) / 4
        # A bias of conv1 and that of the time embedding share a gradient, which may be reduced once for both.
        twins = [
            x.size for name, x in flatten_dict(run.first, sep="/").items() if "time_emb_proj/bias" in name
        ]
        assert -parts * sum(twins) <= elements - parts * sum(map(math.prod, params)) < 20 * parts


def test_parameters_moments_and_average_are_sharded_equally(runs):
    """With fsdp=2, a device has slightly more than half of the state."""
    state = runs("mae", "4x2").state
    kernel = state.params["encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (32, 128) and kernel.sharding.shard_shape(kernel.shape) == (32, 64)
    big = [x for x in jax.tree.leaves(state) if x.size >= sharding.SHARDED_FROM]
    assert len(big) == 4 * 2  # two kernels of the MLP: parameters, two moments, average
    assert all(x.addressable_shards[0].data.size * 2 == x.size for x in big)
    small = [x for x in jax.tree.leaves(state) if x.size < sharding.SHARDED_FROM]
    assert all(x.sharding.is_fully_replicated for x in small)


def test_sharding_rule():
    cases = {
        (64, 64): P(None, "fsdp"),  # the last of equal axes
        (128, 64): P("fsdp"),
        (3, 3, 16, 32): P(None, None, None, "fsdp"),
        (137, 30): P(None, "fsdp"),  # 2 divides only the shorter
        (65, 65): P(),  # 2 divides neither
        (4096,): P("fsdp"),
        (4095,): P(),
        (): P(),
    }
    for shape, expected in cases.items():
        assert sharding.parameter_spec(shape, 2) == expected, shape
        assert sharding.parameter_spec(shape, 1) == P()
    assert sharding.parameter_spec((1026, 32), 4) == P(None, "fsdp")


def test_pmap_orders_devices_by_process():
    """A mesh of a multi-host TPU slice alternates between hosts, which JAX's pmap rejects."""

    class Device(NamedTuple):
        id: int
        process_index: int

    mesh = [Device(0, 0), Device(4, 1), Device(1, 0), Device(5, 1), Device(2, 0), Device(6, 1)]
    assert [device.id for device in sharding.by_process(mesh)] == [0, 1, 2, 4, 5, 6]


def test_meshes_of_invalid_sizes_are_rejected():
    for data, model in ((3, -1), (2, 2), (-1, 16)):
        with pytest.raises(UserError, match=f"data={data} times fsdp={model} devices, but there are 8"):
            sharding.make_mesh(config=MeshConfig(data, model))
    assert dict(sharding.make_mesh(config=MeshConfig(2, -1)).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(UserError, match="config.mesh.fsdp must be 1, not 2"):
        make_parallel(sharding.make_mesh(config=MeshConfig(4, 2)), "pmap")
