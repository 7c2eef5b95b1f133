"""What an encoder makes of images, layer by layer, pooled over places."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from l2l_jax.evals.blockwise import Blockwise
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.models.base import Model, Params

OUTPUT = "output"
"""The name of what the encoder returns."""


EMBEDDED = 250
"""Test images of each set whose features are shown, at most; evenly spaced."""


class TestFeatures(NamedTuple):
    """What encoders make of some test images.

    Attributes:
      features: what each encoder returns, pooled, `[image, feature]`, by model, then by set.
      labels: class ids `[image]`, by set.
    """

    features: dict[str, dict[str, np.ndarray]]
    labels: dict[str, np.ndarray]


def test_features(
    model: Model, models: Mapping[str, Params], tests: Mapping[str, ImageSet], *,
    batch_size: int, seed: int,
) -> TestFeatures:  # fmt: skip
    """Features of at most `EMBEDDED` images of each set.

    Args:
      model: the model.
      models: parameters by name.
      tests: image sets by name.
      batch_size, seed: see `Features`.
    """
    compute = Features(model, batch_size, seed)
    found = TestFeatures({}, {})
    for name, params in models.items():
        found.features[name] = {}
        for of, images in tests.items():
            layers_, labels = compute(params, images)
            chosen = np.linspace(0, len(labels) - 1, min(len(labels), EMBEDDED)).astype(int)
            found.features[name][of] = list(layers_.values())[-1][chosen]
            found.labels[of] = labels[chosen]
    return found


class Features:
    """Pooled encoder features by layer, compiled once for any number of models.

    Args:
      model: the model.
      batch_size: images per compiled call.
      seed: of the corruption; every model sees the same.
    """

    def __init__(self, model: Model, batch_size: int, seed: int):
        # What is computed twice or in a loop cannot be looked into.
        inlined = {name: False for name in ("remat", "scan") if getattr(model, name, False)}
        if inlined:
            model = dataclasses.replace(model, **inlined)
        self._order: list[str] = []

        def compute(params, images, rng):
            found = layers(model, params, images, rng)
            self._order[:] = found  # JAX sorts the names of what it returns
            return found

        self._blocks = Blockwise(compute, batch_size, seed)

    def __call__(self, params: Params, images: ImageSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features `[image, feature]` by layer, in the encoder's order, and class ids `[image]`."""
        blocks = [(found, good.labels) for good, found in self._blocks(params, images)]
        features = {name: np.concatenate([found[name] for found, _ in blocks]) for name in self._order}
        return features, np.concatenate([labels for _, labels in blocks])


def layers(model: Model, params: Params, images: jax.Array, rng: jax.Array) -> dict[str, jax.Array]:
    """Means over places of what the encoder's layers return, float32 `[batch, channel]` each.

    Layers are the modules that the encoder consists of, in their order, and then what it returns.
    """
    found: dict[str, jax.Array] = {}

    def listen(call, args, kwargs, context):
        returned = call(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            _add_pooled(found, context.module.name, returned, len(images))
        return returned

    seen = model.corrupt(params, images, rng)
    with nn.intercept_methods(listen):
        output = model.encode(params["encoder"], seen)
    _add_pooled(found, OUTPUT, output, len(images))
    return found


def _add_pooled(found: dict[str, jax.Array], name: str, returned: object, rows: int) -> None:
    arrays = [x for x in jax.tree.leaves(returned) if x.ndim > 1 and x.shape[0] == rows]
    for number, x in enumerate(arrays):
        pooled = x.astype("float32").mean(axis=tuple(range(1, x.ndim - 1)))
        found[name if len(arrays) == 1 else f"{name}_{number}"] = pooled
