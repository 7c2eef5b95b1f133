"""The interface that all model families implement, and their registry."""

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
"""Dtypes that matrix products can be computed in."""

# Types of fields. Pydantic uses them to validate configs and the metadata of saved models.
Size = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Sizes = Annotated[tuple[Size, ...], pydantic.Field(min_length=1)]
Numbers = Annotated[tuple[Number, ...], pydantic.Field(min_length=1)]
Positives = Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]
Corrupted = Any
"""Corrupted encoder input: a pytree whose leaves have a leading batch axis."""


class PretrainingStage(NamedTuple):
    """One phase of training a model from scratch."""

    name: str  # short name for folders and log lines
    trained: tuple[str, ...]  # parts of the parameters that this phase trains
    # `(frozen, images, rng, axis_name=None) -> inputs`: does all random sampling, see `Model.corrupt`.
    # `frozen` holds the other parts; the leaves of `inputs` have a leading batch axis.
    prepare: Callable[..., Any]
    # `(params, inputs) -> [batch]`: per-example loss; `params` holds all parts
    loss: Callable[[Params, Any], Array]


class Model(abc.ABC):
    """An image-to-image model h = D ∘ E, as pure functions over explicit parameters.

    Pixel values are within `value_range`. Subclasses are frozen dataclasses of sizes, without parameters.
    """

    VARIANTS: ClassVar[Mapping[str, dict[str, Any]]] = {}
    """Sizes of published models, keyed by the value of `config.model.variant`."""
    FORMATS: ClassVar[tuple[CheckpointFormat, ...]] = ()
    """Supported PyTorch checkpoint formats; export uses the first."""
    TRAINED_WITH: ClassVar[tuple[str, ...]] = ()
    """Fields that the weights depend on but that cannot be inferred from their shapes."""

    image_size: int
    channels: int
    value_range: tuple[float, float]
    generative_parts: tuple[str, ...] = ("encoder", "decoder")
    """Parts that the family's own loss trains, given a trained tokenizer if the family has one."""
    corruption_parts: tuple[str, ...] = ()
    """Frozen parts that `corrupt` reads, such as a tokenizer."""
    precompute_parts: tuple[str, ...] = ()
    """Subset of `corruption_parts` that only `precompute` reads; steps on codes do not need them."""
    codes_hold_draws: bool = False
    """True if `precompute` samples part of T; noise then needs the sample of its forget image."""
    encodes_visible: bool = False
    """True if the encoder receives visible positions only; its features then encode knowledge of the rest."""
    inpaints_from_patches: bool = False
    """True if `inpaint_from_patches` and `grid` are implemented."""
    attention_layers: tuple[str, ...] = ()
    """Names of the modules whose kernels are attention projections."""
    why_no_samples: str = "its reconstructions are not drawn at random"
    """Reason why `sample` is not supported; "" if it is."""
    why_no_noise: str = "it is no diffusion model"
    """Reason why `denoise` and `noise_norm` are not supported; "" if they are."""

    @property
    def inpaint_passes(self) -> int:
        """Number of forward passes of `inpaint`, for runtime estimates."""
        return 1

    @property
    def why_no_codes(self) -> str:
        """Reason why `corrupt` does not accept codes in place of images; "" if it does."""
        return "this family has no tokenizer"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape `(height, width, channel)` of the initial noise of diffusion models."""
        return self.image_shape

    @property
    def code(self) -> jax.ShapeDtypeStruct | None:
        """Shape and dtype of the codes that `precompute` returns per image; None if it is not implemented."""
        return None

    @property
    def grid(self) -> int:
        """Number of patches along one side."""
        raise NotImplementedError(f"{type(self).__name__} has no patches")

    def as_fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def canonical(self) -> Self:
        """Return the model with fields that have no effect set to canonical values."""
        return self

    def for_classes(self, classes: Collection[str]) -> Self:
        """Return the model with class names (forget and retain) filled into fields that refer to them."""
        del classes
        return self

    def alternatives(self) -> dict[str, Self]:
        """Return models that run the same parameters differently, such as with other prompts, by name."""
        return {}

    def _check_fields(self, limits: Mapping[str, float], **choices: Collection[str]) -> None:
        """Raise a ValueError if a field is outside [0, limit) or not among its choices."""
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} must be in [0, {limit}), not {getattr(self, name)}")
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def _check_mask(self, mask: Any) -> Any:
        """Return the mask as booleans; raise a ValueError if its size differs from that of the images."""
        if mask.shape != self.image_shape[:2]:
            raise ValueError(f"the mask has shape {mask.shape}, the images {self.image_shape[:2]}")
        return mask.astype(bool)

    @abc.abstractmethod
    def init(self, rng: Array) -> Params:
        """Return freshly initialized float32 parameters by part."""

    def derived_parts(self) -> Params:
        """Return the parts that are determined by the fields and therefore not stored in checkpoints."""
        return {}

    def shapes(self) -> Params:
        """Return the shapes and dtypes of the parameters; equal models are traced only once."""
        return jax.tree.map(lambda x: x, _shapes(self))  # copy the containers of the cached result

    def in_compute_dtype(self, params: Params) -> Params:
        """Cast parameters to the dtype that each of them is computed in.

        See `l2l_jax.models.layers.in_dtype`; the default is float32 throughout.
        """
        return params

    @abc.abstractmethod
    def corrupt(self, params: Params, images: Images, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Apply the paper's T, the only random step before the encoder.

        The same `rng` gives the same sample (kept patches, masks, times, noise) for any images, which lets
        student and teacher share a corruption. Inside `pmap` and `shard_map`, `axis_name` is the axis over
        which the batch is split; each row is then corrupted as on a single device.
        """

    def corrupt_noise(
        self, params: Params, images: Images, noise: Images, rng: Array, axis_name: str | None = None
    ) -> Corrupted:
        """Return the teacher's input in place of forget `images`: `noise` corrupted by the same T."""
        del images
        return self.corrupt(params, noise, rng, axis_name)

    def precompute(self, params: Params, images: Images, rng: Array) -> Shaped[Array, "batch ..."]:
        """Compute the codes that `corrupt` accepts in place of images; only this needs `precompute_parts`.

        With the same `rng`, `corrupt` returns the same result for images and for their codes.
        """
        raise NotImplementedError(self.why_no_codes)

    @abc.abstractmethod
    def encode(self, encoder_params: Any, corrupted: Corrupted) -> PyTree[Float[Array, "batch ..."]]:
        """Return the features that the objective compares."""

    @abc.abstractmethod
    def predict(self, params: Params, corrupted: Corrupted) -> Any:
        """Return the decoder's outputs, a pytree of float32 arrays with a leading batch axis.

        Shapes depend only on those of `corrupted`, and an index has the same meaning in every example, so the
        outputs for two images can be compared.
        """

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[Any, Any]:
        """Return the results of `encode` and `predict`.

        Families override this to run the encoder once. The default relies on XLA's common subexpression
        elimination, which does not remove the second pass from a backward pass.
        """
        return self.encode(params["encoder"], corrupted), self.predict(params, corrupted)

    def generative_loss(self, params: Params, images: Images, corrupted: Corrupted) -> PerExample:
        """Return the family's own training loss for each example."""
        return self.prediction_loss(self.predict(params, corrupted), images, corrupted)

    @abc.abstractmethod
    def prediction_loss(self, predicted: Any, images: Images, corrupted: Corrupted) -> PerExample:
        """Return the `generative_loss` of predictions, the result of `predict` for `corrupted`."""

    @abc.abstractmethod
    def imitation_loss(self, predicted: Any, corrupted: Corrupted, target: Any) -> PerExample:
        """Return the `prediction_loss` with another model's predictions as the target.

        It covers the same positions as `prediction_loss`. Outputs at other positions were never trained, and
        reveal more about memorized images than the reconstructions do.
        """

    @abc.abstractmethod
    def with_truth(
        self, params: Params, images: Images, corrupted: Corrupted, truth: Images
    ) -> tuple[Images, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss`, with `truth` as target at hidden positions."""

    def noisy_truth(
        self, images: Images, corrupted: Corrupted, noise: Images, rng: Array, axis_name: str | None = None
    ) -> tuple[Images, Corrupted]:
        """Return `(images, corrupted)` for `generative_loss` with Gaussian noise as the target.

        By default `noise`, which has the statistics of the images, replaces the images. Models that read the
        target from `corrupted` replace it there. `rng` is for any further random sampling.
        """
        del images, rng, axis_name
        return noise, corrupted

    @abc.abstractmethod
    def inpaint(
        self, params: Params, images: Images, mask: Bool[np.ndarray, "height width"], rng: Array
    ) -> Images:
        """Return images with the masked region filled in; other pixels are unchanged.

        `mask`, a constant under `jit`, is True at missing pixels, which must not influence the result.
        """

    def inpaint_from_patches(
        self, params: Params, images: Images, visible: Int[Array, "batch visible"]
    ) -> Images:
        """Return images reconstructed from the patches `visible`: row-major indices, ascending.

        Visible pixels are unchanged; hidden pixels must not influence the result.
        """
        raise NotImplementedError(f"{type(self).__name__} does not inpaint from patches")

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Return a sample of `inpaint` and its misfit to the visible pixels next to the mask, `[batch]`.

        The misfit is all that an attacker needs to search for the best sample. `noise`,
        `[batch, *noise_shape]`, replaces the initial noise of diffusion models.
        """
        raise NotImplementedError(self.why_no_samples)

    def denoise(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, start: float, scale: float
    ) -> Array:
        """Return reconstructions by a stochastic sampler that runs the last fraction `start` of its steps.

        If `start` is below 1, sampling starts from the true images with the noise of that step added, as a
        hint. `scale` multiplies the noise that the sampler adds.
        """
        raise NotImplementedError(self.why_no_noise)

    def noise_norm(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Return the mean square of the noise predicted for clean images, `[batch]`."""
        raise NotImplementedError(self.why_no_noise)

    def pretraining_stages(self) -> tuple[PretrainingStage, ...]:
        """Return the phases of training from scratch; by default one phase with `generative_loss`."""

        def prepare(frozen, images, rng, axis_name=None):
            return {"images": images, "corrupted": self.corrupt(frozen, images, rng, axis_name)}

        def loss(params, inputs):
            return self.generative_loss(params, inputs["images"], inputs["corrupted"])

        return (PretrainingStage("model", self.generative_parts, prepare, loss),)


FAMILIES: Registry[Model] = Registry("model family")
"""Model families, keyed by the value of `config.model.family`."""
register = FAMILIES.register


def fresh_parts(model: Model, parts: Collection[str]) -> Callable[[Array], Params]:
    """Return a compiled `rng -> {part: weights}` that initializes these parts as `model.init` does."""

    @jax.jit
    def draw(rng):
        values = model.init(rng)
        return {part: values[part] for part in parts}

    return draw


@functools.lru_cache(maxsize=32)
def _shapes(model: Model) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))
