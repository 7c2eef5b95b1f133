"""Latent diffusion for inpainting (Rombach et al. 2022), and its unlearning.

The encoder is the input half of the U-Net: first convolution, time embedding, down blocks and middle with all
skips; the decoder is the output half. The VAE and the embedded prompts are frozen.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax import masks
from l2l_jax.models import base
from l2l_jax.models.base import DTYPES, Corrupted, Count, Model, Number, Params, Size, register
from l2l_jax.models.latent_diffusion.diffusers import Pipeline
from l2l_jax.models.latent_diffusion.scheduler import Schedule
from l2l_jax.models.latent_diffusion.unet import Decoder, Encoder, Features, UNetSizes
from l2l_jax.models.latent_diffusion.vae import AutoencoderKL, VAESizes
from l2l_jax.models.layers import apply, in_dtype
from l2l_jax.models.palette.model import draw_masks
from l2l_jax.utils.batch_axis import draw_rows

CLASS = "{class}"  # stands in a prompt for the name of each class to forget or retain

FLOAT32 = (
    *("encoder/time_embedding", "encoder/add_embedding", "decoder/conv_out"),
    *("vae/encoder/conv_out", "vae/decoder/conv_out", "vae/quant_conv", "vae/post_quant_conv"),
)
"""Modules that are computed in float32 whatever the dtype."""


@register("latent_diffusion")
@dataclasses.dataclass(frozen=True)
class LatentDiffusion(Model):
    """Latent diffusion inpainting over square images; the defaults are Stable Diffusion 1.5's.

    Parts of the parameters: "encoder" and "decoder", the halves of the U-Net; and frozen "vae", "prompts"
    (`words` `[prompt, word, channel]` and, of SDXL, `pooled` `[prompt, channel]`) and "holes".

    Attributes:
      image_size: Side of the images in pixels, a multiple of the strides of VAE and U-Net, together 64.
      unet, vae, schedule: Sizes of the networks and the noise levels, as sections.
      prompts: Prompts whose embeddings are stored with the weights. T draws among them. "{class}" stands for
        each class to forget or retain.
      prompt: The one of them that `inpaint` uses.
      prompt_words: Tokens of an embedded prompt.
      sample_steps: Deterministic (DDIM) steps of `inpaint`.
      guidance_scale: Factor of classifier-free guidance away from the empty prompt, which must be among the
        prompts; None: no guidance.
      kl_weight: Weight, in the VAE's own training, of the mean divergence of latents from normal noise.
      training_holes, hole_bank_size, hole_seed: See `Palette`.
      dtype, vae_dtype: "float32" or "bfloat16", of the products.
      remat: See `MAE`.
      scan: Loop over one compiled transformer block where a place has several, as in SDXL.
    """

    image_size: Size = 512
    unet: UNetSizes = UNetSizes()  # noqa: RUF009  (frozen)
    vae: VAESizes = VAESizes()  # noqa: RUF009
    schedule: Schedule = Schedule()  # noqa: RUF009
    prompts: tuple[str, ...] = ("",)
    prompt: str = ""
    prompt_words: Size = 77
    sample_steps: Size = 50
    guidance_scale: float | None = None
    kl_weight: Number = 1e-4
    training_holes: masks.TrainingMask = "hybrid"
    hole_bank_size: Size = 128
    hole_seed: Count = 0
    value_range: tuple[float, float] = (-1.0, 1.0)
    dtype: str = "float32"
    vae_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    FORMATS = (Pipeline(),)  # no annotations: not fields
    TRAINED_WITH = (
        *("unet.heads", "unet.norm_groups", "vae.norm_groups", "vae.scaling_factor", "vae.shift_factor"),
        *("schedule.train_timesteps", "schedule.beta_start", "schedule.beta_end", "schedule.beta_schedule"),
        *("schedule.prediction_type", "schedule.zero_snr", "prompts", "value_range"),
    )
    corruption_parts = ("vae", "holes", "prompts")
    precompute_parts = ("vae", "holes")
    codes_hold_draws = True
    attention_layers = ("to_q", "to_k", "to_v", "to_out")
    why_no_codes = why_no_samples = why_no_noise = ""

    def __post_init__(self):
        self._check_fields({}, training_holes=masks.TRAINING_MASKS, dtype=DTYPES, vae_dtype=DTYPES)
        channels = 2 * self.vae.latent_channels + 1
        if self.unet.in_channels != channels:
            raise ValueError(
                f"the U-Net takes {self.unet.in_channels} channels; expected an inpainting model, with "
                f"{channels}: noisy latents, a mask and latents of the masked image"
            )
        stride = self.vae.stride * self.unet.stride
        if self.image_size % stride:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {stride}, the total stride")
        if self.prompt not in self.prompts:
            known = ", ".join(map(repr, self.prompts))
            raise ValueError(f"prompt {self.prompt!r} is not among the prompts {known}")
        if self.guidance_scale is not None and "" not in self.prompts:
            raise ValueError("guidance_scale needs the empty prompt among the prompts")
        if self.scan and max(self.unet.transformer_layers) < 2:
            raise ValueError("scan needs several transformer blocks in a place; this U-Net has one at most")
        self.schedule.timesteps(self.sample_steps)  # checks their number

    @property
    def channels(self) -> int:  # type: ignore[override]
        return self.vae.channels

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.unet, jnp.dtype(self.dtype), self.remat, self.scan)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.unet, jnp.dtype(self.dtype), self.remat, self.scan)

    @property
    def autoencoder(self) -> AutoencoderKL:
        return AutoencoderKL(self.vae, jnp.dtype(self.vae_dtype))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.vae.stride
        return side, side, self.vae.latent_channels

    noise_shape = latent_shape

    @property
    def code(self) -> jax.ShapeDtypeStruct:
        """Mean and logarithm of the variance of the image's latents and of the masked image's; the mask."""
        *sides, channels = self.latent_shape
        return jax.ShapeDtypeStruct((*sides, 4 * channels + 1), np.float32)

    def for_classes(self, classes: Collection[str]) -> "LatentDiffusion":
        prompts = [
            prompt.replace(CLASS, name)
            for prompt in self.prompts
            for name in (classes if CLASS in prompt else ("",))
        ]
        return dataclasses.replace(self, prompts=tuple(dict.fromkeys(prompts)))

    def alternatives(self) -> "dict[str, LatentDiffusion]":
        others = [prompt for prompt in self.prompts if prompt != self.prompt]
        return {f"prompt {x or 'empty'}": dataclasses.replace(self, prompt=x) for x in others}

    def init(self, rng: Array) -> Params:
        keys = jax.random.split(rng, 5)
        side, words = self.unet.stride, (len(self.prompts), self.prompt_words, self.unet.cross_attention_dim)
        prompts = {"words": jax.random.normal(keys[0], words)}
        if pooled := self._pooled_width:
            prompts["pooled"] = jax.random.normal(keys[1], (len(self.prompts), pooled))
        inputs = jnp.zeros((1, side, side, self.unet.in_channels)), jnp.zeros(1, jnp.int32)
        given = self._conditioning(prompts, jnp.zeros(1, jnp.int32))
        prompt, added = given["prompt"], given.get("added")
        features, encoder = self.encoder.init_with_output(keys[2], *inputs, prompt, added)
        image = jnp.zeros((1, self.vae.stride, self.vae.stride, self.channels))
        return {
            "encoder": encoder["params"],
            "decoder": self.decoder.init(keys[3], features, prompt)["params"],
            "vae": self.autoencoder.init(keys[4], image)["params"],
            "prompts": prompts,
            **self.derived_parts(),
        }

    @property
    def _pooled_width(self) -> int:
        return max(self.unet.added_dim - 6 * self.unet.added_time_dim, 0)

    def derived_parts(self) -> Params:
        """Return the bank of training masks "holes", bool `[mask, height, width]`."""
        bank = masks.mask_bank(self.training_holes, self.hole_bank_size, self.image_size, self.hole_seed)
        return {"holes": jnp.asarray(bank)}

    def in_compute_dtype(self, params: Params) -> Params:
        vae = in_dtype(params, jnp.dtype(self.vae_dtype), float32=FLOAT32)
        unet = in_dtype(params, jnp.dtype(self.dtype), float32=FLOAT32)
        return {part: (vae if part == "vae" else unet)[part] for part in params}

    def corrupt(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Draw a mask, a prompt and a time step, and add noise to the latents; see `corrupt_with`.

        `images` may be codes of `precompute`.
        """
        is_code = images.shape[1:] == self.code.shape
        codes = images if is_code else self.precompute(params, images, rng, axis_name)
        return self.corrupt_with(params, codes, draw_rows(lambda n: self.draw(n, rng), len(codes), axis_name))

    def precompute(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Array:
        keys = jax.random.split(rng, 6)[:2]
        mask = draw_rows(lambda n: draw_masks(params["holes"], n, *keys), len(images), axis_name)[..., None]
        return self.encode_images(params, images, mask)

    def encode_images(self, params: Params, images: Array, mask: Array) -> Array:
        """Return codes, see `code`; `mask` is bool `[batch or 1, height, width, 1]`.

        As in diffusers, the mask is gray in the masked image, and latents have the mask of their first pixel.
        """
        stride = self.vae.stride
        small = jnp.broadcast_to(mask[:, ::stride, ::stride], (len(images), *self.latent_shape[:2], 1))
        moments = [self._moments(params, x) for x in (images, jnp.where(mask, 0, images))]
        return jnp.concatenate([*moments[0], *moments[1], small.astype(jnp.float32)], axis=-1)

    def _moments(self, params: Params, images: Array) -> tuple[Array, Array]:
        return apply(self.autoencoder, params["vae"], images, method="encode")

    def draw(self, rows: int, rng: Array) -> dict[str, Array]:
        """Draw all that is random in `corrupt` but the mask; see `corrupt_with`."""
        keys, shape = jax.random.split(rng, 6), (rows, *self.latent_shape)
        return {
            "timesteps": jax.random.randint(keys[2], (rows,), 0, self.schedule.train_timesteps),
            "noise": jax.random.normal(keys[3], shape),
            "posterior": jax.random.normal(keys[4], (rows, 2, *self.latent_shape)),
            "prompt": jax.random.randint(keys[5], (rows,), 0, len(self.prompts)),
        }

    def corrupt_with(self, params: Params, codes: Array, draw: Mapping[str, Array]) -> Corrupted:
        """Corrupt with everything random given.

        Args:
          params: Holds "prompts".
          codes: From `precompute`.
          draw: `timesteps` `[batch]`; `noise`, normal, like the latents; `posterior` `[batch, 2, …]`, normal,
            for samples of the latents of image and masked image; `prompt` `[batch]`, numbers of prompts.

        Returns:
          `inputs` `[batch, height, width, 9]`: noisy latents, mask, latents of the masked image; `timesteps`,
          `prompt` (and, for SDXL, `added`), which the U-Net is given, too; the latents `clean`, their `noise`
          and `mask`.
        """
        mean, log_variance, masked_mean, masked_log_variance, mask = self._split(codes)
        clean = self._latents(mean, log_variance, draw["posterior"][:, 0])
        masked = self._latents(masked_mean, masked_log_variance, draw["posterior"][:, 1])
        corrupted = {
            "mask": mask,
            "timesteps": draw["timesteps"],
            **self._conditioning(params["prompts"], draw["prompt"]),
        }
        return self._with_clean(corrupted, masked, clean, draw["noise"])

    def _split(self, codes: Array) -> list[Array]:
        width = self.vae.latent_channels
        return jnp.split(codes, [width, 2 * width, 3 * width, 4 * width], axis=-1)

    def _latents(self, mean: Array, log_variance: Array, noise: Array) -> Array:
        """Return scaled latents, a sample with standard normal `noise`."""
        sample = mean + jnp.exp(0.5 * log_variance) * noise
        return (sample - self.vae.shift_factor) * self.vae.scaling_factor

    def _means(self, mean: Array, log_variance: Array) -> Array:
        return self._latents(mean, log_variance, jnp.zeros_like(mean))

    def _with_clean(self, corrupted: Corrupted, masked: Array, clean: Array, noise: Array) -> Corrupted:
        noisy = self.schedule.add_noise(clean, noise, corrupted["timesteps"])
        inputs = jnp.concatenate([noisy, corrupted["mask"], masked], axis=-1)
        return {**corrupted, "inputs": inputs, "clean": clean, "noise": noise}

    def _conditioning(self, prompts: Params, numbers: Array) -> dict[str, Any]:
        """Return what the U-Net is given besides latents, for prompts by their numbers `[batch]`."""
        given: dict[str, Any] = {"prompt": jnp.take(jnp.asarray(prompts["words"]), numbers, axis=0)}
        if self._pooled_width:
            size = float(self.image_size)
            sizes = jnp.broadcast_to(jnp.array([[size, size, 0, 0, size, size]]), (len(numbers), 6))
            given["added"] = {
                "pooled": jnp.take(jnp.asarray(prompts["pooled"]), numbers, axis=0),
                "sizes": sizes,
            }
        return given

    def encode(self, encoder_params: Any, corrupted: Corrupted) -> tuple[Array, ...]:
        """Return all skips and, last, the output of the middle block, `[batch, …, …, …]` each."""
        features = self._features(encoder_params, corrupted)
        return (*features.skips, features.hidden)

    def _features(self, encoder_params: Any, corrupted: Corrupted) -> Features:
        given = (corrupted[name] for name in ("inputs", "timesteps", "prompt"))
        return apply(self.encoder, encoder_params, *given, corrupted.get("added"))

    def predict(self, params: Params, corrupted: Corrupted) -> Array:
        """Return the predicted noise (or v, see `Schedule`), float32, like the latents."""
        return self.encode_and_predict(params, corrupted)[1]

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[tuple[Array, ...], Array]:
        features = self._features(params["encoder"], corrupted)
        predicted = apply(self.decoder, params["decoder"], features, corrupted["prompt"])
        return (*features.skips, features.hidden), predicted

    def prediction_loss(self, predicted: Array, images: Array, corrupted: Corrupted) -> Array:
        """Return the mean squared error of the prediction, inside and outside the mask, as in training."""
        del images  # `corrupted` holds their latents
        target = self.schedule.target(corrupted["clean"], corrupted["noise"], corrupted["timesteps"])
        return self.imitation_loss(predicted, corrupted, target)

    def imitation_loss(self, predicted: Array, corrupted: Corrupted, target: Array) -> Array:
        return jnp.square(predicted - target).mean(axis=(1, 2, 3))

    def with_truth(
        self, params: Params, images: Array, corrupted: Corrupted, truth: Array
    ) -> tuple[Array, Corrupted]:
        """Take the latents inside the mask from the mean of those of `truth`."""
        return images, self._with_truth(corrupted, self._means(*self._moments(params, truth)))

    def noisy_truth(
        self, images: Array, corrupted: Corrupted, noise: Array, rng: Array, axis_name: str | None = None
    ) -> tuple[Array, Corrupted]:
        """Draw the latents inside the mask from a normal distribution: there is nothing but noise to find."""
        drawn = draw_rows(lambda n: jax.random.normal(rng, (n, *self.latent_shape)), len(images), axis_name)
        return images, self._with_truth(corrupted, drawn)

    def _with_truth(self, corrupted: Corrupted, truth: Array) -> Corrupted:
        clean = jnp.where(corrupted["mask"] > 0, truth, corrupted["clean"])
        masked = corrupted["inputs"][..., -self.vae.latent_channels :]
        return self._with_clean(corrupted, masked, clean, corrupted["noise"])

    def vae_loss(self, params: Params, inputs: tuple[Array, Array]) -> Array:
        """Return squared error and weighted divergence of the VAE, `[batch]`; `inputs`: images and noise.

        Enough for small images; published VAEs add perceptual and adversarial losses.
        """
        images, noise = inputs
        mean, log_variance = self._moments(params, images)
        drawn = mean + jnp.exp(0.5 * log_variance) * noise
        decoded = apply(self.autoencoder, params["vae"], drawn, method="decode")
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        axes = (1, 2, 3)
        return jnp.square(decoded - images).mean(axes) + self.kl_weight * divergence.mean(axes)

    def pretraining_stages(self) -> tuple[base.PretrainingStage, ...]:
        def prepare(frozen, images, rng, axis_name=None):
            shape = self.latent_shape
            return images, draw_rows(lambda n: jax.random.normal(rng, (n, *shape)), len(images), axis_name)

        return (base.PretrainingStage("vae", ("vae",), prepare, self.vae_loss), *super().pretraining_stages())

    @property
    def inpaint_passes(self) -> int:
        return self.sample_steps * (1 if self.guidance_scale is None else 2)

    def inpaint(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Fill the mask by deterministic reverse diffusion from noise; visible pixels stay."""
        inpainted = self.inpaint_with(params, images, mask, *self._noises(rng, len(images)))
        return self._paste(images, mask, inpainted)

    def _paste(self, images: Array, mask: np.ndarray, inpainted: Array) -> Array:
        """Return images with the masked region from others, clipped."""
        return jnp.where(mask[None, ..., None], jnp.clip(inpainted, *self.value_range), images)

    def _noises(self, rng: Array, rows: int) -> tuple[Array, Array]:
        """Draw the initial noise and that of the masked image's latents."""
        shape = (rows, *self.latent_shape)
        return tuple(jax.random.normal(key, shape) for key in jax.random.split(rng))  # type: ignore[return-value]

    def inpaint_with(
        self, params: Params, images: Array, mask: np.ndarray, noise: Array, posterior: Array, **options: Any
    ) -> Array:
        """Return whole decoded images, with everything random given, standard normal and like the latents.

        `noise` are the first latents; `posterior` makes a sample of the latents of the masked image; `how` is
        for `_steps`.
        """
        mask = self._check_mask(mask)[None, ..., None]
        *_, mean, log_variance, small = self._split(self.encode_images(params, images, jnp.asarray(mask)))
        masked = self._latents(mean, log_variance, posterior)

        def predict(latents, time):
            return self._guided(params, latents, small, masked, time)

        latents = self._steps(predict, noise, **options)
        decoded = latents / self.vae.scaling_factor + self.vae.shift_factor
        return apply(self.autoencoder, params["vae"], decoded, method="decode")

    def _steps(
        self,
        predict: Callable[[Array, Array], Array],
        latents: Array,
        skipped: int = 0,
        draws: tuple[Array, float] | None = None,
        remat: bool = False,
    ) -> Array:
        """Take all but the first `skipped` steps; with `draws`, a key and a scale, each is a draw."""

        def take(latents, time):
            drawn = None
            if draws is not None:
                drawn = draws[1] * jax.random.normal(jax.random.fold_in(draws[0], time), latents.shape)
            return self.schedule.step(predict(latents, time), latents, time, self.sample_steps, drawn), None

        times = jnp.asarray(self.schedule.timesteps(self.sample_steps)[skipped:])
        return jax.lax.scan(jax.checkpoint(take) if remat else take, latents, times)[0]

    def _guided(self, params: Params, latents: Array, mask: Array, masked: Array, time: Array) -> Array:
        """Return the prediction with `prompt`, moved away from that with the empty one."""
        rows = len(latents)
        inputs = jnp.concatenate([latents, mask, masked], axis=-1)

        def predict(prompt: str) -> Array:
            numbers = jnp.full(rows, self.prompts.index(prompt))
            given = self._conditioning(params["prompts"], numbers)
            return self.predict(params, {"inputs": inputs, "timesteps": jnp.full(rows, time), **given})

        if self.guidance_scale is None:
            return predict(self.prompt)
        plain = predict("")
        return plain + self.guidance_scale * (predict(self.prompt) - plain)

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """See `Model`: a ring of visible pixels is masked, too, and the squared error there is the misfit.

        Steps are computed again in the backward pass.
        """
        grown = masks.grow(mask, max(1, self.image_size // 16))
        first, posterior = self._noises(rng, len(images))
        start = first if noise is None else noise
        drawn = self.inpaint_with(params, images, grown, start, posterior, remat=True)
        misfit = jnp.square(drawn - images)[:, grown & ~mask].mean(axis=(1, 2))
        return self._paste(images, grown, drawn), misfit

    def denoise(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, start: float, scale: float
    ) -> Array:
        noise, posterior = self._noises(rng, len(images))
        skipped = min(round((1 - start) * self.sample_steps), self.sample_steps - 1)
        if skipped:
            clean = self._means(*self._moments(params, images))
            time = self.schedule.timesteps(self.sample_steps)[skipped]
            noise = self.schedule.add_noise(clean, noise, jnp.full(len(images), time))
        draws = jax.random.fold_in(rng, 1), scale
        drawn = self.inpaint_with(params, images, mask, noise, posterior, skipped=skipped, draws=draws)
        return self._paste(images, mask, drawn)

    def noise_norm(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """See `Model`: at a tenth of the time steps, inside the mask."""
        _, posterior = self._noises(rng, len(images))
        codes = self.encode_images(params, images, jnp.asarray(mask)[None, ..., None])
        mean, log_variance, masked_mean, masked_log_variance, small = self._split(codes)
        clean = self._means(mean, log_variance)
        masked = self._latents(masked_mean, masked_log_variance, posterior)
        time = jnp.int32(self.schedule.train_timesteps // 10)
        predicted = self._guided(params, clean, small, masked, time)
        noise, _ = self.schedule.noise_and_clean(predicted, clean, time)
        hidden = jnp.broadcast_to(small, noise.shape)
        return (jnp.square(noise) * hidden).sum(axis=(1, 2, 3)) / hidden.sum(axis=(1, 2, 3))
