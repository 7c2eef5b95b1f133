"""The programs of a recipe: a training step on each layout, restoring test images, judging them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.config import Config
from l2l_jax.evals.features import clip, inception, resnet
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.experiment.phase import TrainingPhase, parse_layout
from l2l_jax.plan.figures import Planned
from l2l_jax.plan.work import Work, work_of
from l2l_jax.train import sharding
from l2l_jax.train.parallel import Parallel, make_parallel


def layouts(names: Sequence[str], devices: Sequence[Any], config: Config) -> dict[str, Parallel]:
    """Return layouts of the devices by name; without names the one of the config.

    Raises:
      UserError: See `parse_layout`.
    """
    if names:
        return {name: parse_layout(name, devices) for name in names}
    mesh = sharding.make_mesh(list(devices), config.mesh)
    return {sharding.describe(mesh, config.parallel): make_parallel(mesh, config.parallel)}


def step(stage: TrainingPhase, name: str, parallel: Parallel) -> Planned:
    """Return the training step on a layout.

    Raises:
      UserError: The devices cannot share a batch.
    """
    how, devices = stage.training, parallel.mesh.size
    sharding.check_batch_size(how.batch_size, how.batch_parts, parallel.mesh, "batch_size")
    function, (state, frozen, batch) = stage.step(parallel)
    groups = {"parameters": state.params, "optimiser": (state.step, state.opt_state), "frozen": frozen}
    if state.ema is not None:
        groups["average"] = state.ema
    return Planned(
        f"step, {name}", function, (state, frozen, batch), {**groups, "batch": batch},
        _work_of_step(stage, devices), state, devices,
    )  # fmt: skip


def _work_of_step(stage: TrainingPhase, devices: int) -> Work:
    """Return a device's share: the step of its rows, on a device of its own."""
    alone = make_parallel(sharding.make_mesh(jax.devices("cpu")[:1]), "jit")
    function, (state, frozen, batch) = stage.step(alone)
    rows = {
        name: jax.ShapeDtypeStruct((x.shape[0] // devices, *x.shape[1:]), x.dtype)
        for name, x in batch.items()
    }
    return work_of(function, state, frozen, rows)


def restoration(config: Config, devices: Sequence[Any]) -> Planned:
    """Restoring a batch of test images with the first task, on the devices of one host."""
    model, size = config.model, config.evaluate.batch_size
    task = parse_tasks(config.evaluate.tasks)[0]
    inpainter = Inpainter(model, task, batch_size=size, seed=config.seed)
    visible = task.visible_patches(model.grid**2, [(0,)]).shape[1] if task.is_random else 0
    params = model.shapes()
    rows = {
        "images": jax.ShapeDtypeStruct((size, *model.image_shape), np.float32),
        "visible": jax.ShapeDtypeStruct((size, visible), np.int32),
        "places": jax.ShapeDtypeStruct((size,), np.int32),
        "sets": jax.ShapeDtypeStruct((size,), np.uint32),
    }
    program = inpainter.runner.program
    return _on_one_host(f"restore {size} images ({task.name}), one host", program, params, rows, devices)


def evaluation(config: Config, devices: Sequence[Any]) -> Iterator[Planned]:
    """Return the feature networks that the recipe names, without the resizing before them.

    Their weights need not be there; CLIP is the larger of those that are published.
    """
    size = config.evaluate.network_batch_size
    for name in config.evaluate.networks:
        network, side = NETWORKS[name]
        images = jax.ShapeDtypeStruct((size, side, side, 3), np.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]

        def apply(params, images, network=network):
            return network.apply({"params": params}, images)

        yield _on_one_host(f"{name}, {size} images, one host", apply, params, images, devices)


NETWORKS = {
    "inception": (inception.Inception(), inception.IMAGE_SIZE),
    "resnet50": (resnet.ResNet50(), resnet.IMAGE_SIZE),
    "clip": (clip.Tower(clip.PUBLISHED["ViT-H/14"]), clip.PUBLISHED["ViT-H/14"].image_size),
}
"""Feature networks by their names in recipes, and the side of what they see in pixels."""


def _on_one_host(name: str, function: Callable, params: Any, rows: Any, devices: Sequence[Any]) -> Planned:
    """Return a function of parameters and rows, on the devices of the first host, or one of them."""
    local = [device for device in devices if device.process_index == devices[0].process_index]
    if jax.tree.leaves(rows)[0].shape[0] % len(local):
        local = local[:1]
    mesh = Mesh(np.array(local), ("data",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def placed(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def share(x):
        return jax.ShapeDtypeStruct((x.shape[0] // len(local), *x.shape[1:]), x.dtype)

    work = work_of(function, params, jax.tree.map(share, rows))
    arguments = (placed(params, whole), placed(rows, split))
    groups = dict(zip(("parameters", "batch"), arguments, strict=True))
    return Planned(name, jax.jit(function), arguments, groups, work, (), len(local))


def programs(
    config: Config, stage: TrainingPhase, names: Sequence[str], devices: Sequence[Any], which: Sequence[str]
) -> Iterator[Planned]:
    """Return the programs named in `which`: "step" (on each layout), "restoration" and "evaluation"."""
    if "step" in which:
        for name, parallel in layouts(names, devices, config).items():
            yield step(stage, name, parallel)
    if "restoration" in which:
        yield restoration(config, devices)
    if "evaluation" in which:
        yield from evaluation(config, devices)
