"""The step on one device and on eight, over every mesh and under pmap: one set of numbers.

Tolerances: the terms of each of 20 steps agree to 1e-3 of their value, the parameters after them to 3e-4,
which is a hundredth of what 20 steps of Adam at the rate 1e-3 can change. Rounding differs, as sums over the
batch have other orders.
"""


import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from l2l_jax.objectives.methods import make_task
from l2l_jax.training import sharding
from l2l_jax.training.optimizer import TrainingConfig, make_optimizer
from l2l_jax.training.parallel import make_parallel
from l2l_jax.training.sharding import MeshConfig
from l2l_jax.training.step import make_step, placed_state
from tests.compiling import QUICK
from tests.training.families import MODELS, images_of, params_of

CONFIG = TrainingConfig(steps=40, batch_size=16, learning_rate=1e-3, ema_decay=0.9)
LAYOUTS = {"8x1": ("jit", 8, 1), "4x2": ("jit", 4, 2), "1x8": ("jit", 1, 8), "pmap": ("pmap", 8, 1)}
ACCUMULATE = {"mae": 2, "mage": 1, "palette": 1}
METHOD = {"mae": "encoder", "mage": "encoder", "palette": "encoder"}


class Run:
    """A compiled step of a family on a layout, and what 20 steps of it give."""

    def __init__(self, family, kind, data, model):
        mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
        parallel, optimizer = make_parallel(mesh, kind), make_optimizer(CONFIG)
        task = make_task(METHOD[family], MODELS[family], alpha=0.25, noise="normal")
        params = params_of(family)
        step = make_step(
            task, optimizer, seed=3, ema_decay=CONFIG.ema_decay, accumulate=ACCUMULATE[family],
            parallel=parallel,
        )  # fmt: skip
        trained = sharding.place({part: params[part] for part in task.trained}, mesh)
        frozen = sharding.place({part: params[part] for part in task.frozen}, mesh)
        state = placed_state(trained, optimizer, mesh, ema=True)
        batches = [parallel.rows(batch) for batch in images_of(family, 20, 16)]
        self.step = parallel.compile(step).lower(state, frozen, batches[0]).compile(QUICK)
        self.first, self.metrics = state.params, []
        for batch in batches:
            state, metrics = self.step(state, frozen, batch)
            self.metrics.append(jax.device_get(metrics))
        self.state = state


@pytest.fixture(scope="module")
def runs():
    made = {}

    def get(family, layout):
        if (family, layout) not in made:
            made[family, layout] = Run(family, *LAYOUTS.get(layout, ("jit", 1, 1)))
        return made[family, layout]

    return get


def comparable(params):
    """Parameters by path. A key's bias adds the same to all logits of a query: its true gradient is
    zero, and Adam turns the rounding left of it into full steps in a random direction."""
    flat = {name: np.array(x) for name, x in flatten_dict(jax.device_get(params), sep="/").items()}
    for name, value in flat.items():
        if name.endswith("attn/qkv/bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
        elif name.endswith("qkv/bias"):  # Palette: head by head
            value.reshape(-1, 3, 8)[:, 1] = 0
    return flat


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", MODELS)
def test_every_layout_gives_the_numbers_of_one_device(runs, family, layout):
    one, many = runs(family, "one device"), runs(family, layout)
    for name in one.metrics[0]:
        mine, theirs = ([row[name] for row in run.metrics] for run in (one, many))
        np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-6, err_msg=name)
    for which in ("params", "ema"):
        mine, theirs = (comparable(getattr(run.state, which)) for run in (one, many))
        for name in mine:
            np.testing.assert_allclose(theirs[name], mine[name], atol=3e-4, err_msg=name)
