"""FAST: a filter in front of a served model (Panda & Prathosh 2023, arXiv 2312.14895).

The filter looks at features z of an image and refuses it if its score s(z) = ⟨z, z_t⟩ / ‖z_t‖ is above a
threshold. The direction z_t is the mean of the features of undesired references minus that of acceptable
ones.
No filter is unlearning: the weights still know, and whoever has them needs no filter.
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

# The part of the parameters that a guarded model reads: "direction", "threshold" and any "network"
FILTER = "filter"
DRAWS = 4  # draws of T over which encoder features are averaged, the same draws for all images
MINED = "mined"  # value of `FilterConfig.acceptable` for acceptable references that are mined
CARD = "l2l_jax filter"  # key of the card in the metadata of a file
Count = Annotated[int, pydantic.Field(ge=0)]
# `(network parameters, uint8 images) -> features [image, feature]`
Outputs = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """A filter in front of a served model, see `l2l_jax.evals.fast`.

    Attributes:
      features: "encoder": pooled features of T(x), for models whose weights are here; "classifier",
        "inception", "resnet50" or "clip": features of the reconstruction by a network, for black boxes.
      undesired: Folder of images that must not come out; empty: training images of `config.data.forget`.
      acceptable: Folder of images that may; empty: training images of `config.data.retain`; "mined": the
        training images of both sets that are least like the undesired ones, by the paper's rule.
      references: Number of references of each kind, if there are so many.
      direction: "mean": difference of the means; "svm": normal of a linear support vector machine.
      augment: Further references of each kind, drawn from a normal distribution of every feature.
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
      network: Arrays of the small classifier, if its features are read.
      card: JSON-able facts: what the filter belongs to, and how it was made.
    """

    direction: np.ndarray  # z_t / ‖z_t‖, float32 `[feature]`
    threshold: float  # greatest score that passes
    network: dict[str, np.ndarray]  # arrays of the small classifier, if its features are read
    card: dict[str, Any]  # JSON-able facts: what the filter belongs to, and how it was made

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the scores `[image]` of features `[image, feature]`."""
        if features.shape[-1:] != self.direction.shape:
            raise UserError(
                f"The filter reads {len(self.direction)} features and was given {features.shape[-1]}: it was "
                "made for another model or network."
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
    """Read a filter's file; a UserError if it is none."""
    if not path.exists():
        raise UserError(f"{path} does not exist; name a file that `l2l-jax filter fit` wrote.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {})[CARD])
            _ = card["features"], card["weights"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        stem = "network/"
        network = {name.removeprefix(stem): x for name, x in arrays.items() if name.startswith(stem)}
        return Filter(arrays["direction"], arrays["threshold"].item(), network, card)
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
      config: How the direction and the threshold are chosen.
      validation: Features of acceptable images that are no references, for a threshold at a rate of false
        alarms.
      seed: Seed of what is drawn.

    Raises:
      UserError: References are missing or do not fit together, or there are no validation images.
    """
    for name, features in {"undesired": undesired, "acceptable": acceptable}.items():
        if len(features) < 2:
            there = f"There are {len(features)} {name} references"
            raise UserError(f"{there}; a filter needs at least 2, better 50.")
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
            "A threshold at a rate of false alarms needs validation images: set "
            "config.data.validation_fraction, or config.filter.false_alarms=mean."
        )
    else:
        threshold = threshold_at(validation @ direction, config.false_alarms)
    return Filter(direction, threshold, {}, {})


def threshold_at(scores: np.ndarray, rate: float) -> float:
    """Return the least score of acceptable images above which at most a share `rate` of them lies."""
    ordered = np.sort(scores)
    return float(ordered[len(ordered) - 1 - int(rate * len(ordered) + 1e-9)])


def mined(undesired: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return places in the pool of acceptable references, as many as there are undesired ones, if possible.

    The paper's rule: with the mean of the undesired features as the direction, those whose score is below
    half the least score of an undesired one; chosen at random. Its features are latents with mean 0, so here
    the pool's mean is subtracted first.

    Raises:
      UserError: No image of the pool is so different.
    """
    center = pool.mean(0)
    direction = (undesired - center).mean(0)
    direction = direction / max(np.linalg.norm(direction), 1e-12)
    least = ((undesired - center) @ direction).min()
    found = np.flatnonzero((pool - center) @ direction < least / 2)
    if len(found) < 2:
        raise UserError(
            "No acceptable references can be mined: no image scores below half the least undesired one. Name "
            "a folder of them with --config.filter.acceptable."
        )
    return np.sort(rng.choice(found, min(len(found), len(undesired)), replace=False))


def _normal(undesired: np.ndarray, acceptable: np.ndarray) -> np.ndarray:
    from sklearn.svm import LinearSVC  # start-up time

    features = np.concatenate([undesired, acceptable])
    spread = features.std(0) + 1e-12  # features of one scale: fewer iterations
    labels = np.repeat([1, 0], [len(undesired), len(acceptable)])
    machine = LinearSVC(random_state=0, dual=False).fit((features - features.mean(0)) / spread, labels)
    return machine.coef_[0] / spread


def encoder_features(model: Model, params: Params, images: jax.Array, mask: np.ndarray) -> jax.Array:
    """Return encoder features of T(x) averaged over places and `DRAWS` draws of T, `[image, feature]`.

    Pixels under the mask, which a served model does not get, are gray. The draws are the same for all images,
    so that nobody can try until one passes.
    """
    seen = jnp.where(mask[None, ..., None], jnp.float32(np.mean(model.value_range)), images)

    def one(key: jax.Array) -> jax.Array:
        def of_image(image: jax.Array) -> jax.Array:
            output = model.encode(params["encoder"], model.corrupt(params, image[None], key))
            pooled = (x.mean(axis=tuple(range(1, x.ndim - 1))) for x in jax.tree.leaves(output))
            return jnp.concatenate(list(pooled), axis=-1)[0]

        return jax.vmap(of_image)(seen)

    return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(0), DRAWS)), axis=0)


def bytes_of(model: Model, images: jax.Array) -> jax.Array:
    """Return images as uint8, as they are written to files."""
    low, high = model.value_range
    unit = (jnp.clip(images, low, high) - low) / (high - low)
    return jnp.rint(unit * 255).astype(jnp.uint8)


def guarded(model: Model, outputs: Outputs | None = None) -> Model:
    """Return a model that shows a gray mask in place of what `params["filter"]` refuses.

    Parameters without that part are not filtered. With `outputs` the features are those of a network on the
    reconstruction, whose parameters are `params["filter"]["network"]`; otherwise those of the encoder.
    """
    family = type(model)

    def guard(params: Params, images: jax.Array, mask: np.ndarray, shown: jax.Array) -> jax.Array:
        if FILTER not in params:
            return shown
        part = params[FILTER]
        if outputs is None:
            features = encoder_features(model, params, images, mask)
        else:
            features = outputs(part["network"], bytes_of(model, shown))
        refused = jnp.where(mask[None, ..., None], jnp.float32(np.mean(model.value_range)), images)
        blocked = features @ part["direction"] > part["threshold"]
        return jnp.where(blocked[:, None, None, None], refused, shown)

    def inpaint(self: Any, params: Params, images: jax.Array, mask: np.ndarray, rng: jax.Array) -> jax.Array:
        return guard(params, images, mask, family.inpaint(self, params, images, mask, rng))

    def sample(self: Any, params: Params, images: Any, mask: Any, rng: jax.Array, noise: Any = None) -> Any:
        shown, misfit = family.sample(self, params, images, mask, rng, noise)
        return guard(params, images, mask, shown), misfit

    methods: Mapping[str, Any] = {"inpaint": inpaint, "sample": sample, "__repr__": lambda self: repr(model)}
    return type("Guarded", (family,), dict(methods))(**model.as_fields())
