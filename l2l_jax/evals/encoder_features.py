"""Encoder features of images, layer by layer, averaged over spatial positions."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np

from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.runner import BatchedRunner, per_image
from l2l_jax.models.base import Model, Params

OUTPUT = "output"  # layer name of the encoder's output
EMBEDDED = 250  # maximum number of embedded test images per set; evenly spaced


class EmbeddedImages(NamedTuple):
    """Encoder outputs averaged over positions, `[image, feature]`, by model and set; class IDs by set."""

    features: dict[str, dict[str, np.ndarray]]
    labels: dict[str, np.ndarray]


def embed_images(
    compute: "EncoderFeatures", models: Mapping[str, Params], tests: Mapping[str, ImageSet]
) -> EmbeddedImages:
    """Compute the encoder outputs of models, by name, for at most `EMBEDDED` images of each set."""
    embedded = EmbeddedImages({}, {})
    for name, params in models.items():
        embedded.features[name] = {}
        for set_name, images in tests.items():
            layers, labels = compute(params, images)
            chosen = np.linspace(0, len(labels) - 1, min(len(labels), EMBEDDED)).astype(int)
            embedded.features[name][set_name] = list(layers.values())[-1][chosen, 0]
            embedded.labels[set_name] = labels[chosen]
    return embedded


class EncoderFeatures:
    """Encoder features by layer, averaged over positions; compiled once for any number of models.

    Layers are the encoder's modules in order, followed by its output (for a U-Net, that of the middle block).
    Each image gets `draws` corruptions, which depend on `seed`.
    """

    def __init__(self, model: Model, batch_size: int, seed: int, draws: int = 1):
        # Layers inside `remat` or `scan` cannot be intercepted.
        inlined = {name: False for name in ("remat", "scan") if getattr(model, name, False)}
        self._model = dataclasses.replace(cast(Any, model), **inlined) if inlined else model
        self._order: list[str] = []
        self._draws = draws
        self._runner = BatchedRunner(per_image(self._features, seed), batch_size)

    def __call__(self, params: Params, images: ImageSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return features `[image, draw, feature]` by layer, float32, and class IDs `[image]`."""
        blocks = [(layers, good.labels) for good, layers in self._runner.over(params, images, "features")]
        features = {name: np.concatenate([layers[name] for layers, _ in blocks]) for name in self._order}
        return features, np.concatenate([labels for _, labels in blocks])

    def _features(self, params: Params, image: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Return the features of one image, `[draw, channel]` each."""
        keys = jax.random.split(key, self._draws)
        return jax.vmap(functools.partial(self._features_of_draw, params, image))(keys)

    def _features_of_draw(self, params: Params, image: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        layers: dict[str, jax.Array] = {}

        def listen(call, args, kwargs, context):
            returned = call(*args, **kwargs)
            if context.method_name == "__call__" and len(context.module.path) == 1:
                arrays, name = _maps(returned), context.module.name
                layers.update({name if len(arrays) == 1 else f"{name}_{i}": x for i, x in enumerate(arrays)})
            return returned

        inputs = self._model.corrupt(params, image[None], key)
        with nn.intercept_methods(listen):
            *skips, output = _maps(self._model.encode(params["encoder"], inputs))
        # Most skip connections of a U-Net are outputs of its modules.
        new = [x for x in skips if not any(x is layer for layer in layers.values())]
        layers |= {f"{OUTPUT}_{i}": x for i, x in enumerate(new)} | {OUTPUT: output}
        self._order[:] = layers  # JAX sorts the keys of the returned dict
        return {name: x.astype("float32").mean(tuple(range(1, x.ndim - 1)))[0] for name, x in layers.items()}


def _maps(returned: Any) -> list[jax.Array]:
    """Return the arrays with a batch axis of one image and at least one more axis."""
    return [x for x in jax.tree.leaves(returned) if x.ndim > 1 and x.shape[0] == 1]
