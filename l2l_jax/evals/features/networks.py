"""Feature networks for images, and loading of published networks from local files."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationConfig, Resizing
from l2l_jax.evals.features import clip, convolutions, inception, resnet
from l2l_jax.evals.features.resizing import center_square, resized
from l2l_jax.evals.metrics import metrics_of
from l2l_jax.evals.runner import BatchedRunner
from l2l_jax.models import mapping
from l2l_jax.models.mapping import Table
from l2l_jax.train.concurrent import threads
from l2l_jax.utils.multihost import barrier, exchange
from l2l_jax.utils.runtime import usable_cpus
from l2l_jax.weights.checkpoints import about, as_floats, open_checkpoint
from l2l_jax.weights.published import PUBLISHED, PublishedFile, weights_folder

# Statistics of ResNet-50's training pixels in [0, 1]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Number of images per compiled call when a CPU runs several calls at the same time: XLA's convolutions leave
# cores idle, and the data of few images fits in caches
PER_THREAD = 2

FILES: Mapping[str, Sequence[PublishedFile]] = {
    "inception": (PUBLISHED["inception"],),
    "resnet50": (PUBLISHED["resnet50-places365"],),
    "clip": (PUBLISHED["clip-vit-h-14"], PUBLISHED["clip-vit-b-32"]),
}
"""Files to look for in the folder of weights, best first."""

# Arrays with a leading image axis: "features" `[image, feature]`, float32; "probabilities" `[image, class]`,
# float32, for networks with classes; "classes", class IDs `[image]`, for classifiers of the masked region
Outputs = dict[str, Any]
Apply = Callable[[Any, jax.Array], Outputs]  # `(params, uint8 images) -> Outputs`
Opened = tuple[str, Any, Apply]  # a network's name in reports, parameters and function


class FeatureNetwork(Protocol):
    """A trained network that evaluates images.

    `name` is its name in reports. `weights` is JSON-serializable metadata: `file`, `sha256`, `licence` and
    other known fields. Networks of whole images also have `outputs`, an `Apply`.
    """

    name: str
    weights: Mapping[str, Any]

    def __call__(self, images: np.ndarray) -> Outputs:
        """Return the outputs for uint8 images `[image, height, width, 3]`, which the network resizes."""


class BatchedNetwork:
    """A `FeatureNetwork` that runs on this process's devices in batches of one shape.

    On a CPU, each core computes its own batch of at most `PER_THREAD` images.
    """

    def __init__(self, name: str, weights: Mapping[str, Any], params: Any, apply: Apply, batch_size: int):
        def precise(params: Any, images: jax.Array) -> Outputs:
            with jax.default_matmul_precision("highest"):  # the default of GPUs and TPUs is less precise
                return apply(params, images)

        self.name, self.weights, self.params, self.outputs = name, weights, params, precise
        cores = threads(len(usable_cpus()))
        batch_size = batch_size if cores == 1 else min(batch_size, PER_THREAD)
        self._runner = BatchedRunner(precise, batch_size, threads=cores)
        self._params = self._runner.place(params)

    def __call__(self, images: np.ndarray) -> Outputs:
        """Return the outputs for uint8 images `[image, height, width, 3]`."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected uint8 images [image, y, x, 3], not {images.dtype} {images.shape}")
        return self._runner(self._params, images)


def open_networks(config: EvaluationConfig) -> tuple[dict[str, FeatureNetwork], dict[str, str]]:
    """Load the networks of `config.networks` whose weights are available; called by all processes.

    A field such as `config.inception` names the file. If it is empty, the published file is looked up in the
    folder of weights. Nothing is downloaded. A network is used only if all processes have its file.

    Returns:
      Networks by their names in `config.networks`, and reasons for unavailable metrics by their names.

    Raises:
      UserError: A named file does not exist, or a file does not contain weights of its network.
    """
    with barrier():
        paths = {name: find_weights(config, name) for name in config.networks}
    lacking = exchange(json.dumps([name for name, path in paths.items() if path is None]))
    missing = {name for names in lacking for name in json.loads(names)}
    networks: dict[str, FeatureNetwork] = {}
    with barrier():
        for name, path in paths.items():
            if path is not None and name not in missing:
                networks[name] = _open(name, path, config)
    lacking_metrics = ((metric, name) for name in paths if name in missing for metric in metrics_of(name))
    return networks, {metric: _reason(name) for metric, name in lacking_metrics}


def find_weights(config: EvaluationConfig, name: str) -> pathlib.Path | None:
    """Return the file of a network's weights, or None; raise a UserError if a named file does not exist."""
    named = getattr(config, name)
    if not named:
        paths = [weights_folder() / file.file for file in FILES[name]]
        return next((path for path in paths if path.is_file()), None)
    path = pathlib.Path(os.path.expanduser(named))
    if not path.is_file():
        raise UserError(
            f"config.evaluate.{name}={named} does not exist; it should be a file of weights, or empty to "
            f"look in {weights_folder()}."
        )
    return path


def _reason(name: str) -> str:
    file = FILES[name][0]
    return (
        f"not available: {file.file}, published at {file.page}, is not in {weights_folder()}, and "
        f"config.evaluate.{name} names no other; python -m l2l_jax.weights fetch {file.name} downloads it"
    )


def _open(name: str, path: pathlib.Path, config: EvaluationConfig) -> FeatureNetwork:
    source = open_checkpoint(path)
    with about(path):
        title, params, apply = OPENERS[name](source.state_dict, config)
    facts = source.facts()
    file = next((file for file in PUBLISHED.values() if file.sha256 == facts["sha256"]), None)
    published = {"licence": (file or FILES[name][0]).licence, "published": file is not None}
    page = {} if file is None else {"page": file.page}
    return BatchedNetwork(title, {**facts, **published, **page}, params, apply, config.network_batch_size)


def inception_pixels(images: jax.Array, resize: Resizing) -> jax.Array:
    """Resize and scale uint8 images for Inception to `[image, 299, 299, 3]`, approximately in [-1, 1]."""
    side = inception.IMAGE_SIZE
    if resize == "clean-fid":
        return (resized(images, side, side, "bicubic") - 128) / 128
    return resized(images, side, side, "bilinear", antialias=False) / 127.5 - 1


def _open_inception(state_dict: Mapping[str, Any], config: EvaluationConfig) -> Opened:
    network = inception.Inception()
    params = _joined_params(network, inception.TABLE, inception.NORM_EPSILON, state_dict)
    apply = _classifier(network, lambda images: inception_pixels(images, config.resize))
    return f"Inception-v3 (FID, resized as {config.resize})", params, apply


def _open_resnet50(state_dict: Mapping[str, Any], config: EvaluationConfig) -> Opened:
    network, side = resnet.ResNet50(), resnet.IMAGE_SIZE
    params = _joined_params(network, resnet.TABLE, resnet.NORM_EPSILON, state_dict)

    def pixels(images: jax.Array) -> jax.Array:
        small = resized(images, side, side, "bilinear", bytes_between=True)
        return _normalize(small, IMAGENET_MEAN, IMAGENET_STD)

    return "ResNet-50 (Places-365)", params, _classifier(network, pixels)


def _open_clip(state_dict: Mapping[str, Any], config: EvaluationConfig) -> Opened:
    state_dict = clip.unpack(state_dict)
    table, name, sizes = clip.recognize(state_dict)
    network = clip.Tower(sizes)
    target = _shapes(network, sizes.image_size)
    params = as_floats(mapping.to_flax(table, state_dict, target), target)

    def apply(params: Any, images: jax.Array) -> Outputs:
        pixels = center_square(images, sizes.image_size)
        return {"features": network.apply({"params": params}, _normalize(pixels, clip.MEAN, clip.STD))}

    return f"CLIP {name}", params, apply


OPENERS = {"inception": _open_inception, "resnet50": _open_resnet50, "clip": _open_clip}


def _classifier(network: nn.Module, pixels: Callable[[jax.Array], jax.Array]) -> Callable:
    def apply(params: Any, images: jax.Array) -> Outputs:
        outputs: Any = network.apply({"params": params}, pixels(images))
        features, logits = outputs
        return {"features": features, "probabilities": jax.nn.softmax(logits)}

    return apply


def _shapes(network: nn.Module, side: int) -> dict[str, Any]:
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def _joined_params(network: nn.Module, table: Table, epsilon: float, state_dict: Any) -> dict[str, Any]:
    target = convolutions.apart(_shapes(network, inception.IMAGE_SIZE))
    arrays = mapping.to_flax(table, state_dict, target)
    return convolutions.joined(as_floats(arrays, target), epsilon)


def _normalize(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Normalize pixels in [0, 255] by the mean and standard deviation of pixels in [0, 1]."""
    return (pixels / 255 - jnp.array(mean)[None, None, None]) / jnp.array(std)[None, None, None]
