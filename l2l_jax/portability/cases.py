"""Computations to compare: steps of a small model of each family, with device-independent inputs."""

import dataclasses
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from l2l_jax.config import Config, parse_config
from l2l_jax.experiment.phase import open_phase
from l2l_jax.models.base import FAMILIES, Model, Params
from l2l_jax.train import sharding
from l2l_jax.train.parallel import ParallelKind, make_parallel

STEPS = 3
ROWS = 16  # retain images per batch (and forget images), a multiple of the number of devices
ENTRIES = 16  # number of evenly spaced values recorded of each array
Dtype = Literal["float32", "bfloat16"]
Precision = Literal["highest", "default"]
Quantities = dict[str, list[float]]
SMALL = dict(width=32, depth=1, num_heads=4, decoder_width=32, decoder_depth=1, decoder_num_heads=4)
MODELS: dict[str, dict[str, Any]] = {
    "mae": dict(family="mae", image_size=16, patch_size=4, **SMALL),
    "mage": dict(
        family="mage",
        image_size=16,
        codebook_size=64,
        codebook_width=8,
        base_channels=16,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        groups=4,
        blend_margin=0,
        blend_sigma=0.0,
        **SMALL,
    ),
    "palette": dict(
        family="palette",
        image_size=16,
        inner_channel=16,
        channel_mults=(1, 2),
        res_blocks=1,
        attn_res=(2,),
        num_head_channels=8,
        norm_groups=4,
        hole_bank_size=8,
    ),
    "latent_diffusion": dict(
        family="latent_diffusion",
        image_size=16,
        prompts=("", "a digit"),
        prompt_words=4,
        hole_bank_size=8,
        unet=dict(
            block_out_channels=(16, 32),
            attends=(False, True),
            layers_per_block=(1, 1),
            transformer_layers=(1, 1),
            heads=(2, 4),
            cross_attention_dim=8,
            norm_groups=4,
        ),
        vae=dict(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, scaling_factor=1.0),
    ),
}
"""The model of each case."""


def compute(name: str, mesh: Mesh, parallel: ParallelKind, dtype: Dtype) -> Quantities:
    """Compute the quantities of a case, a key of `MODELS`; see docs/guides/portability.md."""
    config = _config(name, dtype)
    phase, model = open_phase(config, "unlearn"), config.model
    params, runner = fixed_params(model), make_parallel(mesh, parallel)
    step, arguments = phase.step(runner)
    compiled = step.lower(*arguments).compile()
    # Perturb the student: at the teacher, gradients of the retain term are rounding errors, which Adam would
    # turn into full steps.
    trained = {part: params[part] for part in phase.objective.trained}
    moved = jax.tree.map(lambda x: np.float32(1.1) * x if x.dtype == np.float32 else x, trained)
    state = phase.state(params | moved, mesh)
    teacher = {part: params[part] for part in phase.objective.frozen}
    frozen = sharding.place(phase.objective.cast(teacher), mesh)
    low, high = (np.float32(end) for end in model.value_range)
    drawn = np.random.default_rng(0).random((2, ROWS, *model.image_shape), np.float32)
    images = dict(zip(("retain", "forget"), low + (high - low) * drawn, strict=True))
    quantities: Quantities = {}
    for _ in range(STEPS):
        state, metrics = compiled(state, frozen, runner.rows(images))
        for metric in ("loss", "retain", "forget", "grad_norm"):
            quantities.setdefault(metric, []).append(float(metrics[metric]))
    quantities["moments"] = _entries(optax.tree.get(state.opt_state, "mu"))
    quantities["parameters"] = _entries(state.params)
    return quantities | _without_training(model, params, images["retain"], mesh)


def _without_training(model: Model, params: Params, images: np.ndarray, mesh: Mesh) -> Quantities:
    placed = sharding.place(params, mesh)
    rows = sharding.shard_batch(images, mesh)

    @jax.jit
    def features(params, rows):
        return model.encode(params["encoder"], model.corrupt(params, rows, jax.random.key(1)))

    quantities = {"features": _entries(features(placed, rows))}
    if model.code is not None and np.issubdtype(model.code.dtype, np.integer):
        codes = jax.jit(model.precompute)(placed, rows, jax.random.key(1))
        quantities["tokens"] = np.ravel(jax.device_get(codes)).tolist()
    return quantities


def _config(name: str, dtype: Dtype) -> Config:
    phase = dict(steps=STEPS + 1, batch_size=ROWS, learning_rate=1e-4)
    fields = [field.name for field in dataclasses.fields(FAMILIES[MODELS[name]["family"]])]  # type: ignore[arg-type]
    dtypes = dict.fromkeys([field for field in fields if field.endswith("dtype")], dtype)
    return parse_config(
        {
            "seed": 0,
            "model": {**MODELS[name], **dtypes, "pretrained": "drawn by NumPy"},
            "data": {"source": "digits", "forget": (1,), "retain": (0,)},
            "unlearn": phase,
            "evaluate": {},
        }
    )


def fixed_params(model: Model) -> Params:
    """Sample parameters with NumPy, from normal generators that are seeded by the path of each array.

    Kernels have variance 1 / fan_in, scales are centered at 1, other vectors at 0. Arrays that are not
    floating-point are taken from the model's own initialization.
    """

    def not_floats(key: jax.Array) -> Params:  # omits sampling of floats, which compiles faster
        own = model.init(key)
        return jax.tree.map(lambda x: jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, own)

    own = jax.jit(not_floats)(jax.random.key(0))

    def leaf(path: Any, value: jax.Array) -> np.ndarray:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return np.asarray(value)
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        normal = rng.standard_normal(value.shape, np.float32)
        if value.ndim > 1:
            return normal / np.float32(np.sqrt(np.prod(value.shape[:-1])))
        return np.float32(getattr(path[-1], "key", "") == "scale") + np.float32(0.1) * normal

    return jax.tree_util.tree_map_with_path(leaf, own)


def _entries(tree: Any) -> list[float]:
    """Return `ENTRIES` values of each array of a tree, or all values of smaller arrays."""
    values = []
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        flat = np.ravel(np.asarray(leaf, np.float32))
        values += flat[np.linspace(0, flat.size - 1, min(ENTRIES, flat.size)).astype(int)].tolist()
    return values
