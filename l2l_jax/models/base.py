"""The interface of all model families, and their registry."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jax import Array

from l2l_jax.models.checkpoints import CheckpointFormat
from l2l_jax.utils.registry import Registry

Params = dict[str, Any]
"""Parameters by part: `{"encoder": …, "decoder": …}` and frozen parts such as `"tokenizer"`."""

Corrupted = Any
"""What an encoder is given after corruption: a pytree whose leaves start with the batch axis."""


class PretrainingStage(NamedTuple):
    """One stage of training a model from nothing.

    Attributes:
      name: Short name, used for folders and log lines.
      trained: The parts of the parameters that this stage trains.
      prepare: `(frozen, images, rng, axis_name=None) -> inputs`: everything random, see `Model.corrupt`;
        `frozen` holds the other parts, leaves of `inputs` start with the batch axis.
      loss: `(params, inputs) -> [batch]`, the loss of every example, with all parts.
    """

    name: str
    trained: tuple[str, ...]
    prepare: Callable[..., Any]
    loss: Callable[[Params, Any], Array]


class Model(abc.ABC):
    """An image-to-image model h = D ∘ E, as pure functions over explicit parameters.

    Images are float arrays `[batch, height, width, channel]` within `value_range`. Subclasses are frozen
    dataclasses: they hold sizes, never parameters.
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
    inpaints_from_patches: bool = False
    """Whether `inpaint_from_patches` and `grid` exist."""
    codebook_size: int = 0
    """Number of different codes."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channel)`."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def tokens(self) -> int:
        """Codes of an image, of models with a frozen tokenizer; otherwise 0."""
        return 0

    @property
    def grid(self) -> int:
        """Patches along a side."""
        raise NotImplementedError(f"{type(self).__name__} has no patches")

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def as_fields(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in self.field_names()}

    def replace(self, **fields: Any) -> Self:
        """Return the model with other values of some fields."""
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def canonical(self) -> Self:
        """Return the model with fields that have no effect set to one value."""
        return self

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

        See `l2l_jax.models.layers.precision`; by default everything is float32.
        """
        return params

    @abc.abstractmethod
    def corrupt(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Apply T of the paper: the only random step before the encoder.

        The same `rng` gives the same draw (kept patches, masks, times, noises) whatever the images are, so
        that student and teacher can be given the same corruption. Inside `pmap` and `shard_map`, `axis_name`
        is the
        axis over which the batch is split: rows are corrupted as on one device (`l2l_jax.utils.batch_axis`).
        """

    def corrupt_noise(
        self, params: Params, images: Array, noise: Array, rng: Array, axis_name: str | None = None
    ) -> Corrupted:
        """Return what the teacher is given in place of forget `images`: `noise` under the same T."""
        del images
        return self.corrupt(params, noise, rng, axis_name)

    @property
    def why_no_codes(self) -> str:
        """Why `corrupt` cannot be given codes in place of images, or "" where it can."""
        return "this family has no tokenizer"

    def tokenize(self, params: Params, images: Array) -> Array:
        """Return codes, int32 `[batch, tokens]`, which `corrupt` takes in place of the images."""
        raise NotImplementedError(self.why_no_codes)

    @abc.abstractmethod
    def encode(self, encoder_params: Any, corrupted: Corrupted) -> Any:
        """Return the features that the objective compares: arrays that start with the batch axis."""

    @abc.abstractmethod
    def predict(self, params: Params, corrupted: Corrupted) -> Any:
        """Return the decoder's outputs, a pytree of float32 arrays that start with the batch axis.

        Shapes depend on those of `corrupted` alone, and equal places mean the same in every example, so that
        outputs on two images can be compared.
        """

    def generative_loss(self, params: Params, images: Array, corrupted: Corrupted) -> Array:
        """Return the family's own training loss of every example, `[batch]`."""
        return self.prediction_loss(self.predict(params, corrupted), images, corrupted)

    @abc.abstractmethod
    def prediction_loss(self, predicted: Any, images: Array, corrupted: Corrupted) -> Array:
        """Return the `generative_loss` of what `predict` returned for `corrupted`, `[batch]`."""

    @abc.abstractmethod
    def imitation_loss(self, predicted: Any, corrupted: Corrupted, target: Any) -> Array:
        """Return the `prediction_loss` with another model's `predict` as the truth, `[batch]`.

        It counts the places that `prediction_loss` counts. Outputs elsewhere were never trained, and tell
        more about the images that a model knows than its reconstructions do.
        """

    @abc.abstractmethod
    def with_truth(
        self, params: Params, images: Array, corrupted: Corrupted, truth: Array
    ) -> tuple[Array, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss` with `truth` to find in the hidden places."""

    def noisy_truth(
        self, images: Array, corrupted: Corrupted, noise: Array, rng: Array, axis_name: str | None = None
    ) -> tuple[Array, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss` with Gaussian noise as the truth.

        By default `noise`, which has the statistics of the images, replaces them; models that read the truth
        from `corrupted` change it there. `rng` is for anything else that is drawn.
        """
        del images, rng, axis_name
        return noise, corrupted

    @abc.abstractmethod
    def inpaint(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Return images `[batch, height, width, channel]` with the masked region filled in.

        Args:
          params: All parts.
          images: Originals; masked pixels must not influence the result, others stay.
          mask: Bool `[height, width]`, True where pixels are missing; a constant under `jit`.
          rng: Key of any sampling.
        """

    def inpaint_from_patches(self, params: Params, images: Array, visible: Array) -> Array:
        """Return images `[batch, height, width, channel]` reconstructed from some of their patches each.

        Args:
          params: All parts.
          images: Originals; hidden pixels must not influence the result, visible ones stay.
          visible: Int `[batch, visible]`, the visible patches of each image, row-major, ascending.
        """
        raise NotImplementedError(f"{type(self).__name__} does not inpaint from patches")

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
