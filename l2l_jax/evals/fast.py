"""FAST: a filter in front of a served model (Panda & Prathosh 2023, arXiv 2312.14895).

The filter computes features z of an image and refuses it if its score s(z) = ⟨z, z_t⟩ / ‖z_t‖ is above a
threshold. The direction z_t is the mean of the features of undesired references minus that of acceptable
references. A filter is not unlearning: the weights still contain the knowledge, and anyone who has them can
run the model without the filter.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.io import atomic_write

# Part of the parameters for the filter of a model: "direction", "threshold" and optionally "network"
FILTER = "filter"
DRAWS = 4  # number of draws of T to average encoder features over; the same draws for all images
MINED = "mined"  # value of `FilterConfig.acceptable` for mined acceptable references
CARD = "l2l_jax filter"  # key in the metadata of a safetensors file
Count = Annotated[int, pydantic.Field(ge=0)]
# `(network parameters, uint8 images) -> features [image, feature]`
Outputs = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """A filter in front of a served model, see `l2l_jax.evals.fast`.

    Attributes:
      features: "encoder": pooled features of T(x), for models with available weights; "classifier",
        "inception", "resnet50" or "clip": features of the reconstruction by a network, for black boxes.
      undesired: Folder of images to refuse; empty: training images of `config.data.forget`.
      acceptable: Folder of images to accept; empty: training images of `config.data.retain`; "mined": the
        training images of both sets that differ most from the undesired images, by the paper's rule.
      references: Maximum number of references of each kind.
      direction: "mean": difference of the means; "svm": normal of a linear support vector machine.
      augment: Number of additional references of each kind, drawn from a normal distribution per feature.
      false_alarms: Share of acceptable validation images that the threshold may refuse; "mean": the paper's
        threshold, the mean score of all references.
    """

    features: Literal["encoder", "classifier", "inception", "resnet50", "clip"] = "encoder"
    undesired: str = ""
    acceptable: str = ""
    references: Annotated[int, pydantic.Field(ge=2)] = 50
    direction: Literal["mean", "svm"] = "mean"
    augment: Count = 1000
    false_alarms: Annotated[float, pydantic.Field(ge=0, lt=1)] | Literal["mean"] = 0.05


class Filter(NamedTuple):
    """A fitted filter.

    Attributes:
      direction: z_t / ‖z_t‖, float32 `[feature]`.
      threshold: Greatest score that passes.
      network: Arrays of the small classifier, if its features are used.
      card: JSON-serializable metadata: identity of the model, and config of the filter.
    """

    direction: np.ndarray
    threshold: float
    network: dict[str, np.ndarray]
    card: dict[str, Any]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the scores `[image]` of features `[image, feature]`."""
        if features.shape[-1:] != self.direction.shape:
            raise UserError(
                f"The filter takes {len(self.direction)} features, but got {features.shape[-1]}: it was "
                "fitted for another model or network."
            )
        return features @ self.direction

    def blocks(self, features: np.ndarray) -> np.ndarray:
        """Return whether each image `[image]` is refused."""
        return self.scores(features) > self.threshold

    def part(self, network: Any = None) -> dict[str, Any]:
        """Return the part `FILTER` of the parameters of a `guarded` model."""
        own = {"direction": np.float32(self.direction), "threshold": np.array(self.threshold, np.float32)}
        return own if network is None else {**own, "network": network}

    def save(self, path: pathlib.Path) -> None:
        """Write a safetensors file."""
        arrays = {"direction": self.direction, "threshold": np.array(self.threshold, np.float32)}
        arrays |= {f"network/{name}": array for name, array in self.network.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, safetensors.numpy.save(arrays, metadata={CARD: json.dumps(self.card)}))


def load_filter(path: pathlib.Path) -> Filter:
    """Load a filter from a file; raise a UserError if the file is not a filter."""
    if not path.exists():
        raise UserError(f"{path} does not exist; name a file that `l2l-jax filter fit` wrote.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})[CARD])
            _ = metadata["features"], metadata["weights"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        stem = "network/"
        network = {name.removeprefix(stem): x for name, x in arrays.items() if name.startswith(stem)}
        return Filter(arrays["direction"], arrays["threshold"].item(), network, metadata)
    except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError):
        raise UserError(f"{path} is not a filter; expected a file that `l2l-jax filter fit` wrote.") from None


def fit(
    undesired: np.ndarray,
    acceptable: np.ndarray,
    config: FilterConfig,
    *,
    validation: Any = None,
    seed: int = 0,
) -> Filter:
    """Fit a filter to features of references.

    Args:
      undesired: Features of undesired references, `[image, feature]`.
      acceptable: Features of acceptable references; with `config.acceptable="mined"`, of any images.
      config: Config of the filter.
      validation: Features of acceptable images other than the references, to choose the threshold for a false
        alarm rate.
      seed: Random seed.

    Raises:
      UserError: References are missing or have different numbers of features, or there are no validation
        images.
    """
    for name, features in {"undesired": undesired, "acceptable": acceptable}.items():
        if len(features) < 2:
            raise UserError(
                f"There are {len(features)} {name} references; a filter needs at least 2, preferably 50."
            )
    if undesired.shape[1:] != acceptable.shape[1:]:
        raise UserError(
            f"The references have {undesired.shape[1]} and {acceptable.shape[1]} features; expected those of "
            "one model or network."
        )
    rng = np.random.default_rng(seed)
    if config.acceptable == MINED:
        acceptable = acceptable[mined(undesired, acceptable, rng)]
    references = []
    for x in (undesired, acceptable):
        drawn = rng.normal(x.mean(0), x.std(0, ddof=1), (config.augment, x.shape[1]))
        references.append(np.concatenate([x, drawn]))
    z = references[0].mean(0) - references[1].mean(0) if config.direction == "mean" else _normal(*references)
    direction = (z / max(np.linalg.norm(z), 1e-12)).astype(np.float32)
    if config.false_alarms == "mean":
        threshold = float((np.concatenate(references) @ direction).mean())
    elif validation is None or not len(validation):
        raise UserError(
            "A threshold for a false alarm rate needs validation images: set "
            "config.data.validation_fraction, or config.filter.false_alarms=mean."
        )
    else:
        threshold = threshold_at(validation @ direction, config.false_alarms)
    return Filter(direction, threshold, {}, {})


def threshold_at(scores: np.ndarray, rate: float) -> float:
    """Return the least score that at most a share `rate` of the acceptable images exceeds."""
    ordered = np.sort(scores)
    return float(ordered[len(ordered) - 1 - int(rate * len(ordered) + 1e-9)])


def mined(undesired: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pool indices of acceptable references, as many as there are undesired references, if possible.

    By the paper's rule, they are drawn at random from all images whose score, with the mean of the undesired
    features as the direction, is below half the least score of undesired references. The paper's features are
    latents with mean 0, so here the pool's mean is subtracted first.

    Raises:
      UserError: Fewer than two images of the pool differ enough.
    """
    center = pool.mean(0)
    direction = (undesired - center).mean(0)
    direction = direction / max(np.linalg.norm(direction), 1e-12)
    least = ((undesired - center) @ direction).min()
    candidates = np.flatnonzero((pool - center) @ direction < least / 2)
    if len(candidates) < 2:
        raise UserError(
            "No acceptable references can be mined: no image scores below half the least undesired one. Name "
            "a folder of them with --config.filter.acceptable."
        )
    return np.sort(rng.choice(candidates, min(len(candidates), len(undesired)), replace=False))


def _normal(undesired: np.ndarray, acceptable: np.ndarray) -> np.ndarray:
    from sklearn.svm import LinearSVC  # slow to import

    features = np.concatenate([undesired, acceptable])
    spread = features.std(0) + 1e-12  # features on the same scale need fewer iterations
    labels = np.repeat([1, 0], [len(undesired), len(acceptable)])
    machine = LinearSVC(random_state=0, dual=False).fit((features - features.mean(0)) / spread, labels)
    return machine.coef_[0] / spread


def encoder_features(model: Model, params: Params, images: jax.Array, mask: np.ndarray) -> jax.Array:
    """Return encoder features of T(x) averaged over positions and `DRAWS` draws of T, `[image, feature]`.

    Masked pixels, which are not inputs of a served model, are gray. The draws are the same for all images, so
    repeated requests cannot pass by chance.
    """
    inputs = jnp.where(mask[None, ..., None], jnp.float32(np.mean(model.value_range)), images)

    def one(key: jax.Array) -> jax.Array:
        def of_image(image: jax.Array) -> jax.Array:
            output = model.encode(params["encoder"], model.corrupt(params, image[None], key))
            pooled = (x.mean(axis=tuple(range(1, x.ndim - 1))) for x in jax.tree.leaves(output))
            return jnp.concatenate(list(pooled), axis=-1)[0]

        return jax.vmap(of_image)(inputs)

    return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(0), DRAWS)), axis=0)


def bytes_of(model: Model, images: jax.Array) -> jax.Array:
    """Return images as uint8, rounded as when written to files."""
    low, high = model.value_range
    unit = (jnp.clip(images, low, high) - low) / (high - low)
    return jnp.rint(unit * 255).astype(jnp.uint8)


def guarded(model: Model, outputs: Outputs | None = None) -> Model:
    """Return a model whose reconstructions that `params["filter"]` refuses are replaced by a gray mask.

    Parameters without that part are not filtered. With `outputs`, the features are those of a network applied
    to the reconstruction, with parameters `params["filter"]["network"]`; otherwise those of the encoder.
    """
    family = type(model)

    def guard(params: Params, images: jax.Array, mask: np.ndarray, inpainted: jax.Array) -> jax.Array:
        if FILTER not in params:
            return inpainted
        part = params[FILTER]
        if outputs is None:
            features = encoder_features(model, params, images, mask)
        else:
            features = outputs(part["network"], bytes_of(model, inpainted))
        refused = jnp.where(mask[None, ..., None], jnp.float32(np.mean(model.value_range)), images)
        blocked = features @ part["direction"] > part["threshold"]
        return jnp.where(blocked[:, None, None, None], refused, inpainted)

    def inpaint(self: Any, params: Params, images: jax.Array, mask: np.ndarray, rng: jax.Array) -> jax.Array:
        return guard(params, images, mask, family.inpaint(self, params, images, mask, rng))

    def sample(self: Any, params: Params, images: Any, mask: Any, rng: jax.Array, noise: Any = None) -> Any:
        inpainted, misfit = family.sample(self, params, images, mask, rng, noise)
        return guard(params, images, mask, inpainted), misfit

    methods: Mapping[str, Any] = {"inpaint": inpaint, "sample": sample, "__repr__": lambda self: repr(model)}
    return type("Guarded", (family,), dict(methods))(**model.as_fields())
