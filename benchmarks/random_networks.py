"""Files of random weights in the published layouts of feature networks.

They let benchmarks and rehearsals load and run networks of full size; the computed metrics are meaningless.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from l2l_jax.evals.features import clip, convolutions, inception, resnet
from l2l_jax.models import mapping


def write(name: str, path: str | pathlib.Path, tower: str) -> None:
    """Write random weights of a network of `config.evaluate.networks` to a .safetensors file.

    For CLIP, `tower` is a key of `clip.PUBLISHED`, such as "ViT-H/14"; the layout is that of transformers.
    """
    arrays = clip_tower(tower) if name == "clip" else CONVOLUTIONS[name]()[0]
    save_file(arrays, path)


def inception_weights() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a state dict with the keys of Inception's published file, and the same weights as a tree."""
    stored = _filled(convolutions.apart(_shapes(inception.Inception(), inception.IMAGE_SIZE)))
    return mapping.to_torch(inception.TABLE, stored), stored


def resnet50_weights() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a state dict and a tree of ResNet-50 for Places-365; see `inception_weights`."""
    stored = _filled(convolutions.apart(_shapes(resnet.ResNet50(), resnet.IMAGE_SIZE)))
    return mapping.to_torch(resnet.TABLE, stored), stored


CONVOLUTIONS = {"inception": inception_weights, "resnet50": resnet50_weights}


def clip_tower(tower: str) -> dict[str, np.ndarray]:
    """Return the state dict of one of CLIP's vision towers in the layout of transformers."""
    sizes = clip.PUBLISHED[tower]
    return mapping.to_torch(clip.TRANSFORMERS, _filled(_shapes(clip.Tower(sizes), sizes.image_size)))


def _shapes(network: Any, side: int) -> Mapping[str, Any]:
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def _filled(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Sample a tree of arrays with scales that keep activations from vanishing or exploding."""
    rng = np.random.default_rng(0)

    def value(path: Any, like: Any) -> np.ndarray:
        name, noise = path[-1].key, rng.standard_normal(like.shape, np.float32)
        if name == "kernel":
            return noise * np.float32((2 / np.prod(like.shape[:-1])) ** 0.5)
        return 1 + np.float32(0.1) * abs(noise) if name in ("scale", "var") else np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(value, dict(shapes))
