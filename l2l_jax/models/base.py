"""The interface of all model families, and their registry."""
# ruff: noqa: F722  (shapes are strings)

from __future__ import annotations  # jaxtyping is not needed at run time

import abc
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
import pydantic
from jax import Array

from l2l_jax.models.mapping import CheckpointFormat
from l2l_jax.utils.registry import Registry

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, PyTree, Shaped

    Images = Float[Array, "batch height width channel"]
    PerExample = Float[Array, " batch"]

Params = dict[str, Any]
"""Parameters by part: `{"encoder": …, "decoder": …}` and frozen parts such as `"tokenizer"`."""

DTYPES = ("float32", "bfloat16")
"""Number formats of products."""

# Types of fields, which a config and the cards of saved models are checked by.
Size = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Sizes = Annotated[tuple[Size, ...], pydantic.Field(min_length=1)]
Numbers = Annotated[tuple[Number, ...], pydantic.Field(min_length=1)]
Positives = Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
Corrupted = Any
"""Input of an encoder after corruption: a pytree whose leaves start with the batch axis."""


class PretrainingStage(NamedTuple):
    """One stage of training a model from nothing."""

    name: str  # short name, used for folders and log lines
    trained: tuple[str, ...]  # the parts of the parameters that this stage trains
    # `(frozen, images, rng, axis_name=None) -> inputs`: everything random, see `Model.corrupt`; `frozen`
    # holds the other parts, leaves of `inputs` start with the batch axis
    prepare: Callable[..., Any]
    # `(params, inputs) -> [batch]`, the loss of every example, with all parts
    loss: Callable[[Params, Any], Array]


class Model(abc.ABC):
    """An image-to-image model h = D ∘ E, as pure functions over explicit parameters.

    Images are within `value_range`. Subclasses are frozen dataclasses: they hold sizes, never parameters.
    """

    VARIANTS: ClassVar[Mapping[str, dict[str, Any]]] = {}
    """Sizes of published models by the name that `config.model.variant` takes."""
    FORMATS: ClassVar[tuple[CheckpointFormat, ...]] = ()
    """Formats of PyTorch checkpoints; exported files have the first."""
    TRAINED_WITH: ClassVar[tuple[str, ...]] = ()
    """Fields that the shapes of weights do not show and that the weights depend on."""

    image_size: int
    channels: int
    value_range: tuple[float, float]
    generative_parts: tuple[str, ...] = ("encoder", "decoder")
    """The parts that the family's own loss trains once the tokenizer, if any, is there."""
    corruption_parts: tuple[str, ...] = ()
    """The frozen parts that `corrupt` reads, such as a tokenizer."""
    precompute_parts: tuple[str, ...] = ()
    """Those of them that `precompute` reads; steps on codes do without."""
    codes_hold_draws: bool = False
    """True where part of T is drawn by `precompute`: noise then needs the draw of its forget image."""
    encodes_visible: bool = False
    """True where the encoder sees visible places alone, so that its features hold what it knows of others."""
    inpaints_from_patches: bool = False
    """True where `inpaint_from_patches` and `grid` exist."""
    attention_layers: tuple[str, ...] = ()
    """Names of the modules whose kernels are the projections of attention."""
    why_no_samples: str = "its reconstructions are not drawn at random"
    """Why `sample` cannot be called, or "" where it can."""
    why_no_noise: str = "it is no diffusion model"
    """Why `denoise` and `noise_norm` cannot be called, or "" where they can."""

    @property
    def inpaint_passes(self) -> int:
        """Forward passes of `inpaint`, for estimates of its time."""
        return 1

    @property
    def why_no_codes(self) -> str:
        """Why `corrupt` cannot be given codes in place of images, or "" where it can."""
        return "this family has no tokenizer"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """`(height, width, channel)` of the initial noise of diffusion models."""
        return self.image_shape

    @property
    def code(self) -> jax.ShapeDtypeStruct | None:
        """Shape and type of what `precompute` makes of an image; None where it does not exist."""
        return None

    @property
    def grid(self) -> int:
        """Patches along a side."""
        raise NotImplementedError(f"{type(self).__name__} has no patches")

    def as_fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def canonical(self) -> Self:
        """Return the model with fields that have no effect set to one value."""
        return self

    def for_classes(self, classes: Collection[str]) -> Self:
        """Return the model with the names of classes to forget and retain in fields that refer to them."""
        del classes
        return self

    def alternatives(self) -> dict[str, Self]:
        """Return other ways to run the same parameters, such as with other prompts, by name."""
        return {}

    def _check_fields(self, limits: Mapping[str, float], **choices: Collection[str]) -> None:
        """Raise a ValueError for a field outside [0, limit) or not among its choices."""
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} must lie in [0, {limit}), not {getattr(self, name)}")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def _check_mask(self, mask: Any) -> Any:
        """Return a mask as booleans; one of another size than the images raises a ValueError."""
        if mask.shape != self.image_shape[:2]:
            raise ValueError(f"the mask has shape {mask.shape}, the images {self.image_shape[:2]}")
        return mask.astype(bool)

    @abc.abstractmethod
    def init(self, rng: Array) -> Params:
        """Return fresh float32 parameters by part."""

    def derived_parts(self) -> Params:
        """Return the parts that follow from the fields alone and that checkpoints do not hold."""
        return {}

    def shapes(self) -> Params:
        """Return shapes and dtypes of what `init` makes; equal models are traced once."""
        return jax.tree.map(lambda x: x, _shapes(self))  # containers of the caller's own

    def in_compute_dtype(self, params: Params) -> Params:
        """Return parts of the parameters, each array in the dtype that it is computed with.

        See `l2l_jax.models.layers.in_dtype`; by default everything is float32.
        """
        return params

    @abc.abstractmethod
    def corrupt(self, params: Params, images: Images, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Apply T of the paper: the only random step before the encoder.

        The same `rng` gives the same draw (kept patches, masks, times, noises) whatever the images are:
        student and teacher can be given the same corruption. Inside `pmap` and `shard_map`, `axis_name` is
        the axis over which the batch is split: rows are corrupted as on one device.
        """

    def corrupt_noise(
        self, params: Params, images: Images, noise: Images, rng: Array, axis_name: str | None = None
    ) -> Corrupted:
        """Return what the teacher is given in place of forget `images`: `noise` under the same T."""
        del images
        return self.corrupt(params, noise, rng, axis_name)

    def precompute(self, params: Params, images: Images, rng: Array) -> Shaped[Array, "batch ..."]:
        """Return codes, which `corrupt` takes in place of the images: all that needs `precompute_parts`.

        With the same `rng`, `corrupt` returns the same for images and codes.
        """
        raise NotImplementedError(self.why_no_codes)

    @abc.abstractmethod
    def encode(self, encoder_params: Any, corrupted: Corrupted) -> PyTree[Float[Array, "batch ..."]]:
        """Return the features that the objective compares."""

    @abc.abstractmethod
    def predict(self, params: Params, corrupted: Corrupted) -> Any:
        """Return the decoder's outputs, a pytree of float32 arrays that start with the batch axis.

        Shapes depend on those of `corrupted` alone, and equal places mean the same in every example: outputs
        on two images can be compared.
        """

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[Any, Any]:
        """Return the results of `encode` and `predict`.

        Families run the encoder once; by default XLA is left to see that it can, which it does not in a
        backward pass.
        """
        return self.encode(params["encoder"], corrupted), self.predict(params, corrupted)

    def generative_loss(self, params: Params, images: Images, corrupted: Corrupted) -> PerExample:
        """Return the family's own training loss of every example."""
        return self.prediction_loss(self.predict(params, corrupted), images, corrupted)

    @abc.abstractmethod
    def prediction_loss(self, predicted: Any, images: Images, corrupted: Corrupted) -> PerExample:
        """Return the `generative_loss` of what `predict` returned for `corrupted`."""

    @abc.abstractmethod
    def imitation_loss(self, predicted: Any, corrupted: Corrupted, target: Any) -> PerExample:
        """Return the `prediction_loss` with another model's `predict` as the truth.

        It counts the places that `prediction_loss` counts. Outputs elsewhere were never trained, and tell
        more about the images that a model knows than its reconstructions do.
        """

    @abc.abstractmethod
    def with_truth(
        self, params: Params, images: Images, corrupted: Corrupted, truth: Images
    ) -> tuple[Images, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss` with `truth` to find in the hidden places."""

    def noisy_truth(
        self, images: Images, corrupted: Corrupted, noise: Images, rng: Array, axis_name: str | None = None
    ) -> tuple[Images, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss` with Gaussian noise as the truth.

        By default `noise`, which has the statistics of the images, replaces them; models that read the truth
        from `corrupted` change it there. `rng` is for anything else that is drawn.
        """
        del images, rng, axis_name
        return noise, corrupted

    @abc.abstractmethod
    def inpaint(
        self, params: Params, images: Images, mask: Bool[np.ndarray, "height width"], rng: Array
    ) -> Images:
        """Return images with the masked region filled in; the other pixels stay.

        `mask`, a constant under `jit`, is True where pixels are missing; they must not influence the result.
        """

    def inpaint_from_patches(
        self, params: Params, images: Images, visible: Int[Array, "batch visible"]
    ) -> Images:
        """Return images reconstructed from their patches `visible`, row-major, ascending.

        Visible pixels stay; hidden ones must not influence the result.
        """
        raise NotImplementedError(f"{type(self).__name__} does not inpaint from patches")

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Return a draw of `inpaint`, and how badly it fits what is visible next to the mask, `[batch]`.

        An attacker who searches for the best draw needs to know no more. `noise`, `[batch, *noise_shape]`,
        replaces the initial noise of diffusion models.
        """
        raise NotImplementedError(self.why_no_samples)

    def denoise(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, start: float, scale: float
    ) -> Array:
        """Return reconstructions by a random sampler that takes the last share `start` of its steps.

        Below 1 it starts from the true images with the noise of that step: a hint of them. `scale` is the
        factor on the noise that the sampler adds.
        """
        raise NotImplementedError(self.why_no_noise)

    def noise_norm(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Return the mean square of the noise that is predicted in clean images, `[batch]`."""
        raise NotImplementedError(self.why_no_noise)

    def pretraining_stages(self) -> tuple[PretrainingStage, ...]:
        """Return how to train the model from nothing: by default one stage with `generative_loss`."""

        def prepare(frozen, images, rng, axis_name=None):
            return {"images": images, "seen": self.corrupt(frozen, images, rng, axis_name)}

        def loss(params, inputs):
            return self.generative_loss(params, inputs["images"], inputs["seen"])

        return (PretrainingStage("model", self.generative_parts, prepare, loss),)


FAMILIES: Registry[Model] = Registry("model family")
"""Model families by the name that `config.model.family` takes."""
register = FAMILIES.register


def fresh_parts(model: Model, parts: Collection[str]) -> Callable[[Array], Params]:
    """Return a compiled `rng -> {part: weights}` that draws these parts as `model.init` does."""

    @jax.jit
    def draw(rng):
        values = model.init(rng)
        return {part: values[part] for part in parts}

    return draw


@functools.lru_cache(maxsize=32)
def _shapes(model: Model) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))
