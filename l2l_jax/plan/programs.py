"""Programs of a config: a training step on each layout, inpainting of test images, and feature networks."""

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
from l2l_jax.plan.costs import Planned
from l2l_jax.plan.work import work_of
from l2l_jax.train import sharding
from l2l_jax.train.parallel import Parallel, make_parallel

NETWORKS = {
    "inception": (inception.Inception(), inception.IMAGE_SIZE),
    "resnet50": (resnet.ResNet50(), resnet.IMAGE_SIZE),
    "clip": (clip.Tower(clip.PUBLISHED["ViT-H/14"]), clip.PUBLISHED["ViT-H/14"].image_size),
}
"""Feature networks by name in configs, with the side of their images in pixels."""


def programs(
    config: Config, phase: TrainingPhase, names: Sequence[str], devices: Sequence[Any], which: Sequence[str]
) -> Iterator[Planned]:
    """Yield the programs in `which`: "step" (on each layout), "restoration" and "evaluation".

    If `names` of layouts is empty, the step uses the layout of the config.

    Raises:
      UserError: A layout is invalid (see `parse_layout`), or the batch cannot be split over the devices.
    """
    if "step" in which:
        layouts = {name: parse_layout(name, devices) for name in names}
        if not layouts:
            mesh = sharding.make_mesh(list(devices), config.mesh)
            layouts[sharding.describe(mesh, config.parallel)] = make_parallel(mesh, config.parallel)
        for name, parallel in layouts.items():
            yield _step(phase, name, parallel)
    if "restoration" in which:
        yield _restoration(config, devices)
    if "evaluation" in which:
        for name in config.evaluate.networks:
            yield _feature_network(name, config.evaluate.network_batch_size, devices)


def _step(phase: TrainingPhase, name: str, parallel: Parallel) -> Planned:
    training, devices = phase.training, parallel.mesh.size
    sharding.check_batch_size(training.batch_size, training.batch_parts, parallel.mesh, "batch_size")
    function, (state, frozen, batch) = phase.step(parallel)
    groups = {"parameters": state.params, "optimizer": (state.step, state.opt_state), "frozen": frozen}
    if state.ema is not None:
        groups["average"] = state.ema
    # Work per device: the step for the device's rows, on a single device.
    single = make_parallel(sharding.make_mesh(jax.devices("cpu")[:1]), "jit")
    single_step, (*start, all_rows) = phase.step(single)
    work = work_of(single_step, *start, _share(all_rows, devices))
    return Planned(
        f"step, {name}", function, (state, frozen, batch), {**groups, "batch": batch}, work, state, devices
    )


def _restoration(config: Config, devices: Sequence[Any]) -> Planned:
    """Return the program that inpaints a batch of test images for the first task, on one host's devices."""
    model, size = config.model, config.evaluate.batch_size
    task = parse_tasks(config.evaluate.tasks)[0]
    inpainter = Inpainter(model, task, batch_size=size, seed=config.seed)
    visible = task.visible_patches(model.grid**2, [(0,)]).shape[1] if task.is_random else 0
    rows = {
        "images": jax.ShapeDtypeStruct((size, *model.image_shape), np.float32),
        "visible": jax.ShapeDtypeStruct((size, visible), np.int32),
        "places": jax.ShapeDtypeStruct((size,), np.int32),
        "sets": jax.ShapeDtypeStruct((size,), np.uint32),
    }
    title = f"restore {size} images ({task.name}), one host"
    return _on_one_host(title, inpainter.runner.program, model.shapes(), rows, devices)


def _feature_network(name: str, size: int, devices: Sequence[Any]) -> Planned:
    """Return the program of a feature network without resizing; for CLIP, the larger published network."""
    network, side = NETWORKS[name]
    images = jax.ShapeDtypeStruct((size, side, side, 3), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]

    def apply(params, images):
        return network.apply({"params": params}, images)

    return _on_one_host(f"{name}, {size} images, one host", apply, params, images, devices)


def _on_one_host(name: str, function: Callable, params: Any, rows: Any, devices: Sequence[Any]) -> Planned:
    """Return the program of `function(params, rows)` on the first host's devices, or on one of them."""
    local = [device for device in devices if device.process_index == devices[0].process_index]
    if jax.tree.leaves(rows)[0].shape[0] % len(local):
        local = local[:1]
    mesh = Mesh(np.array(local), ("data",), axis_types=(AxisType.Auto,))

    def placed(tree, *axes):
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    work = work_of(function, params, _share(rows, len(local)))
    arguments = (placed(params), placed(rows, "data"))
    groups = dict(zip(("parameters", "batch"), arguments, strict=True))
    return Planned(name, jax.jit(function), arguments, groups, work, (), len(local))


def _share(rows: Any, devices: int) -> Any:
    """Return the shapes of the rows per device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] // devices, *x.shape[1:]), x.dtype), rows)
