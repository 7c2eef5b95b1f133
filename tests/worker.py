"""A process that trains a tiny model with others: `python -m tests.worker SCENARIO FOLDER --coordinator=…`.

The scenarios are functions of this module. It is started by `tests.utils.launching`.
"""

import os
import pathlib
import signal
import sys
from unittest import mock

import numpy as np

from l2l_jax.cli.common import run_program

STEPS = 12
BATCH = 8


def train(folder, process=None, batch=0, number=0, ways=1, parallel="jit", budgeted=False):
    """Train a linear model; `process` receives the signal `number` before the given batch since its start.

    Parameters are split over `ways` devices. A single process uses only these devices.
    With `budgeted`, a retain budget adjusts the weight, measured every other step.
    """
    import jax

    from l2l_jax.data.loader import LoaderOptions
    from l2l_jax.methods.encoder import Encoder
    from l2l_jax.train import loop, sharding
    from l2l_jax.train.optim import TrainingConfig
    from tests.fixtures.linear import LINEAR, TEACHER
    from tests.fixtures.training import Watched, image_batches, signal_at

    index, count = jax.process_index(), jax.process_count()
    options = LoaderOptions(process_index=index, process_count=count)
    batches = image_batches(BATCH, LINEAR.image_size, options=options)
    if index == process:
        batches = Watched(batches, signal_at(batch, number))
    config = TrainingConfig(
        steps=STEPS, batch_size=BATCH, learning_rate=0.01, checkpoint_every=4, log_every=1, ema_decay=0.9
    )
    devices = jax.devices()[:ways] if count == 1 else None
    mesh = sharding.make_mesh(devices, sharding.MeshConfig(fsdp=ways))
    # Such a small model has no large arrays.
    with mock.patch.object(sharding, "SHARDED_FROM", 64):
        objective = Encoder().objective(LINEAR)
        trainer = loop.Trainer("unlearn", objective, config, seed=1, mesh=mesh, parallel=parallel)
        budget = _budget(LINEAR) if budgeted else None
        return trainer.train(loop.TrainRun(TEACHER, batches, folder, alpha=0.25, budget=budget))


def _budget(model):
    """A budget measured on five retain and three forget images."""
    from l2l_jax.train.budget import RetainBudget
    from l2l_jax.train.unlearning_config import UnlearningConfig
    from l2l_jax.train.validation_errors import MaskedErrors

    images = np.random.default_rng(0).random((8, *model.image_shape), np.float32)
    mask = np.array([[True, True], [False, False]])

    def make_errors(parallel):
        sets = {"retain": images[:5], "forget": images[5:]}
        return MaskedErrors(model, mask, sets, rows=4, seed=0, parallel=parallel)

    config = UnlearningConfig(steps=STEPS, retain_budget=1.0, budget_every=2, budget_rate=6.0)
    return RetainBudget(config, make_errors)


def whole(folder, **options):
    import jax

    np.savez(folder / f"params_{jax.process_index()}.npz", *jax.tree.leaves(train(folder, **options)))


def terminated(folder, **options):
    import jax

    train(folder, jax.process_count() - 1, 4, signal.SIGTERM, **options)


def killed(folder):
    import jax

    train(folder, jax.process_count() - 1, 2, signal.SIGKILL)


def frozen(folder):
    """The last process hangs, as on a frozen host, and the others wait for it."""
    import jax

    from l2l_jax.utils.multihost import barrier

    with barrier():
        if jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGSTOP)


def disagreeing(folder):
    """One process has a file of weights that the others lack; then each process uses a different workdir."""
    import jax

    from l2l_jax.config import parse_config
    from l2l_jax.config_files import read_config
    from l2l_jax.evals.config import EvaluationConfig
    from l2l_jax.evals.features.networks import open_networks
    from l2l_jax.experiment import workdir
    from l2l_jax.weights.published import PUBLISHED

    own = folder / str(jax.process_index())
    own.mkdir()
    os.environ["L2L_JAX_WEIGHTS"] = str(own)
    if jax.process_index() == 0:
        (own / PUBLISHED["inception"].file).touch()
    networks, missing = open_networks(EvaluationConfig(networks=("inception",)))
    np.savez(own / "opened.npz", networks=len(networks), missing=missing["fid"])
    workdir.SHARED_WITHIN = 1.0
    workdir.Workdir(own, parse_config(read_config("digits_mae:encoder")))


MAPPED = dict(budgeted=True, parallel="pmap")
VARIANTS = {
    "sharded": (whole, dict(ways=2)),
    "sharded_terminated": (terminated, dict(ways=2)),
    "budgeted_mapped": (whole, MAPPED),
    "budgeted_mapped_terminated": (terminated, MAPPED),
    "killed_first": (train, dict(process=0, batch=2, number=signal.SIGKILL)),
}


def main(argv):
    _, scenario, folder = argv
    function, options = VARIANTS.get(scenario) or (globals()[scenario], {})
    function(pathlib.Path(folder), **options)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
