"""What a model family must offer so that the rest of the library never asks which family it is."""

import abc
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

Params = dict[str, Any]
"""Parameters by part: `{"encoder": …, "decoder": …}` and frozen parts such as `"tokenizer"`."""

Corrupted = Any
"""What an encoder sees after corruption: a pytree whose leaves all start with the batch axis."""


class PretrainingStage(NamedTuple):
    """One stage of training a model from nothing.

    Attributes:
      name: short name, used for folders and log lines.
      trained: the parts of the parameters that this stage trains.
      prepare: `(frozen, images, rng, axis_name=None) -> inputs`: everything random, see
        `Model.corrupt`; `frozen` holds the parts that are not trained, leaves of
        `inputs` start with the batch axis.
      loss: `(params, inputs) -> [batch]`, the loss of every example, with all parts.
    """

    name: str
    trained: tuple[str, ...]
    prepare: Callable[..., Any]
    loss: Callable[[Params, Any], jax.Array]


class Model(abc.ABC):
    """An image-to-image model h = D ∘ E, as pure functions over explicit parameters.

    Images are float arrays `[batch, height, width, channel]` within `value_range`. Subclasses are
    frozen dataclasses: they hold sizes, never parameters.
    """

    image_size: int
    channels: int
    value_range: tuple[float, float]
    generative_parts: tuple[str, ...] = ("encoder", "decoder")
    """The parts that the family's own training loss trains once the tokenizer, if any, is there."""
    corruption_parts: tuple[str, ...] = ()
    """The frozen parts that `corrupt` reads, such as a tokenizer."""
    inpaints_from_patches: bool = False
    """Whether there is `inpaint_from_patches`; such a model has `grid` patches along a side."""
    tokens: int = 0
    """Codes of an image, of models with a frozen tokenizer."""
    codebook_size: int = 0
    """Different codes that there are."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channel)`."""
        return (self.image_size, self.image_size, self.channels)

    @abc.abstractmethod
    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters by part."""

    def shapes(self) -> Params:
        """Shapes and types of what `init` makes; equal models are traced once."""
        return jax.tree.map(lambda x: x, _shapes(self))  # containers of the caller's own

    def in_compute_dtype(self, params: Params) -> Params:
        """Some parts of the parameters, each array in the type that it is computed with.

        See `l2l_jax.models.layers.precision`; by default everything is float32.
        """
        return params

    @abc.abstractmethod
    def corrupt(
        self, params: Params, images: jax.Array, rng: jax.Array, axis_name: str | None = None
    ) -> Corrupted:
        """T of the paper: the only random step before the encoder.

        The same `rng` gives the same draw (kept patches, masks, times, noises) whatever the images
        are, so that student and teacher can be shown the same corruption. Inside `pmap` and
        `shard_map`, `axis_name` is the axis over which the batch is split: its rows are corrupted as
        they would be on one device (see `l2l_jax.utils.batch_axis`).
        """

    def corrupt_noise(
        self,
        params: Params,
        images: jax.Array,
        noise: jax.Array,
        rng: jax.Array,
        axis_name: str | None = None,
    ) -> Corrupted:
        """What the teacher sees in place of the forget `images`: `noise` under the same T.

        Args:
          params: parameters, as for `corrupt`.
          images: the forget images `[batch, height, width, channel]`.
          noise: noise images of the same shape.
          rng, axis_name: those with which `corrupt` was called on `images`.
        """
        del images
        return self.corrupt(params, noise, rng, axis_name)

    @property
    def why_no_codes(self) -> str:
        """Why `corrupt` cannot be given codes in place of images, or "" where it can.

        Models with a frozen tokenizer override it, and `tokenize`.
        """
        return "this family has no tokenizer"

    def tokenize(self, params: Params, images: jax.Array) -> jax.Array:
        """Images → codes, int32 `[batch, tokens]`, which `corrupt` takes in place of the images.

        Raises:
          NotImplementedError: of a family without a tokenizer.
        """
        raise NotImplementedError(self.why_no_codes)

    @abc.abstractmethod
    def encode(self, encoder_params: Any, corrupted: Corrupted) -> Any:
        """Features compared by the objective: a pytree of arrays that start with the batch axis."""

    @abc.abstractmethod
    def predict(self, params: Params, corrupted: Corrupted) -> Any:
        """What `prediction_loss` holds against the truth: the decoder's outputs on the encoder's
        features, a pytree of float32 arrays that start with the batch axis.

        Its shapes depend on those of `corrupted` only, and equal places mean the same thing in every
        example, so that the outputs on two images can be compared.
        """

    def generative_loss(self, params: Params, images: jax.Array, corrupted: Corrupted) -> jax.Array:
        """The family's own training loss of every example, `[batch]`."""
        return self.prediction_loss(self.predict(params, corrupted), images, corrupted)

    @abc.abstractmethod
    def prediction_loss(self, predicted: Any, images: jax.Array, corrupted: Corrupted) -> jax.Array:
        """`generative_loss` of what `predict` returned for `corrupted`, `[batch]`."""

    @abc.abstractmethod
    def imitation_loss(self, predicted: Any, corrupted: Corrupted, target: Any) -> jax.Array:
        """`prediction_loss` with another model's `predict` on the same `corrupted` as the truth, `[batch]`.

        It counts the places that `prediction_loss` counts. What a model puts elsewhere was never
        trained, and tells more about the images it knows than its restorations do.
        """

    @abc.abstractmethod
    def with_truth(
        self, params: Params, images: jax.Array, corrupted: Corrupted, truth: jax.Array
    ) -> tuple[jax.Array, Corrupted]:
        """What to give `generative_loss` so that other images are the truth.

        Args:
          params: the parts that `corrupt` reads.
          images: a batch `[batch, height, width, channel]`.
          corrupted: what `corrupt` made of it.
          truth: images of the same shape, what the model is to restore in the places that are hidden.

        Returns:
          `(images, corrupted)`, the last two arguments of `generative_loss`.
        """

    def noisy_truth(
        self,
        images: jax.Array,
        corrupted: Corrupted,
        noise: jax.Array,
        rng: jax.Array,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, Corrupted]:
        """What to give `generative_loss` so that the truth is Gaussian noise.

        By default `noise` in place of the images, under an unchanged `corrupted`; models that read the
        truth from `corrupted` change it there.

        Args:
          images: a whole batch `[batch, height, width, channel]`, for statistics.
          corrupted: what `corrupt` made of it.
          noise: Gaussian noise images with the statistics of `images`, same shape.
          rng: key of anything else that is drawn.
          axis_name: mapped axis over which the batch is split.

        Returns:
          `(images, corrupted)`, the last two arguments of `generative_loss`.
        """
        del images, rng, axis_name
        return noise, corrupted

    @abc.abstractmethod
    def inpaint(self, params: Params, images: jax.Array, mask: np.ndarray, rng: jax.Array) -> jax.Array:
        """Images `[batch, height, width, channel]` with the mask filled in and the rest untouched.

        Args:
          params: all parts.
          images: originals; pixels inside the mask must not influence the result.
          mask: bool `[height, width]`, True where pixels are missing.
          rng: key of any sampling.
        """

    def inpaint_from_patches(self, params: Params, images: jax.Array, visible: jax.Array) -> jax.Array:
        """Images `[batch, height, width, channel]` restored from some of their patches each.

        Only for models that `inpaints_from_patches`. The other patches are replaced whole.

        Args:
          params: all parts.
          images: originals; hidden pixels must not influence the result.
          visible: int `[batch, visible]`, the patches of each image that are seen, row-major, ascending.
        """
        raise NotImplementedError(f"{type(self).__name__} does not restore from patches")

    def pretraining_stages(self) -> tuple[PretrainingStage, ...]:
        """How to train the model from nothing: by default one stage with `generative_loss`."""

        def prepare(frozen, images, rng, axis_name=None):
            return {"images": images, "seen": self.corrupt(frozen, images, rng, axis_name)}

        def loss(params, inputs):
            return self.generative_loss(params, inputs["images"], inputs["seen"])

        return (PretrainingStage("model", self.generative_parts, prepare, loss),)


def fresh_parts(model: Model, parts: Collection[str]) -> Callable[[jax.Array], Params]:
    """`rng -> {part: weights}` as `model.init` draws them: compiled once; no other part is drawn."""

    @jax.jit
    def draw(rng):
        values = model.init(rng)
        return {part: values[part] for part in parts}

    return draw


@functools.lru_cache(maxsize=32)
def _shapes(model: Model) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))
