"""Latent diffusion for inpainting (Rombach et al. 2022), and its unlearning.

The encoder is the input half of the U-Net: first convolution, time embedding, down blocks and middle block,
with all skip connections. The decoder is the output half. The VAE and the prompt embeddings are frozen.
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

CLASS = "{class}"  # placeholder in a prompt for the name of each class to forget or retain

FLOAT32 = (
    *("encoder/time_embedding", "encoder/add_embedding", "decoder/conv_out"),
    *("vae/encoder/conv_out", "vae/decoder/conv_out", "vae/quant_conv", "vae/post_quant_conv"),
)
"""Modules that are always computed in float32."""


@register("latent_diffusion")
@dataclasses.dataclass(frozen=True)
class LatentDiffusion(Model):
    """Latent diffusion inpainting over square images; the defaults are those of Stable Diffusion 1.5.

    Parts of the parameters: "encoder" and "decoder", the halves of the U-Net; and the frozen "vae", "prompts"
    (`words` `[prompt, word, channel]` and, for SDXL, `pooled` `[prompt, channel]`) and "holes".

    Attributes:
      image_size: Side of the images in pixels, a multiple of the total stride of VAE and U-Net, 64.
      unet, vae, schedule: Sizes of the networks, and the noise schedule, as config sections.
      prompts: Prompts whose embeddings are stored with the weights. T samples from them. "{class}" is a
        placeholder for each class to forget or retain.
      prompt: The prompt that `inpaint` uses, one of `prompts`.
      prompt_words: Number of tokens of an embedded prompt.
      sample_steps: Number of deterministic (DDIM) steps of `inpaint`.
      guidance_scale: Scale of classifier-free guidance away from the empty prompt, which must be among the
        prompts; None disables guidance.
      kl_weight: Weight of the mean KL divergence of latents from a standard normal in the VAE's own training.
      training_holes, hole_bank_size, hole_seed: See `Palette`.
      dtype, vae_dtype: Dtypes of matrix products, "float32" or "bfloat16".
      remat: See `MAE`.
      scan: Loop over one compiled transformer block where several are in sequence, as in SDXL.
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

    FORMATS = (Pipeline(),)  # not annotated, so not dataclass fields
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
            prompts = ", ".join(map(repr, self.prompts))
            raise ValueError(f"prompt {self.prompt!r} is not among the prompts {prompts}")
        if self.guidance_scale is not None and "" not in self.prompts:
            raise ValueError("guidance_scale needs the empty prompt among the prompts")
        if self.scan and max(self.unet.transformer_layers) < 2:
            raise ValueError("scan needs several transformer blocks in a place; this U-Net has one at most")
        self.schedule.timesteps(self.sample_steps)  # validates sample_steps

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
        """Mean and log variance of the latents of the image, then of the masked image, and the mask."""
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
        conditioning = self._conditioning(prompts, jnp.zeros(1, jnp.int32))
        prompt, added = conditioning["prompt"], conditioning.get("added")
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
        """Sample a mask, a prompt and a time step, and add noise to the latents; see `corrupt_with`.

        `images` may be codes from `precompute`.
        """
        is_code = images.shape[1:] == self.code.shape
        codes = images if is_code else self.precompute(params, images, rng, axis_name)
        return self.corrupt_with(params, codes, draw_rows(lambda n: self.draw(n, rng), len(codes), axis_name))

    def precompute(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Array:
        keys = jax.random.split(rng, 6)[:2]
        mask = draw_rows(lambda n: draw_masks(params["holes"], n, *keys), len(images), axis_name)[..., None]
        return self.encode_images(params, images, mask)

    def encode_images(self, params: Params, images: Array, mask: Array) -> Array:
        """Return codes as described in `code`; `mask` is bool `[batch or 1, height, width, 1]`.

        As in diffusers, the masked image is gray inside the mask; a latent has the mask of its first pixel.
        """
        stride = self.vae.stride
        small = jnp.broadcast_to(mask[:, ::stride, ::stride], (len(images), *self.latent_shape[:2], 1))
        moments = [self._moments(params, x) for x in (images, jnp.where(mask, 0, images))]
        return jnp.concatenate([*moments[0], *moments[1], small.astype(jnp.float32)], axis=-1)

    def _moments(self, params: Params, images: Array) -> tuple[Array, Array]:
        return apply(self.autoencoder, params["vae"], images, method="encode")

    def draw(self, rows: int, rng: Array) -> dict[str, Array]:
        """Sample all random inputs of `corrupt` except the mask; see `corrupt_with`."""
        keys, shape = jax.random.split(rng, 6), (rows, *self.latent_shape)
        return {
            "timesteps": jax.random.randint(keys[2], (rows,), 0, self.schedule.train_timesteps),
            "noise": jax.random.normal(keys[3], shape),
            "posterior": jax.random.normal(keys[4], (rows, 2, *self.latent_shape)),
            "prompt": jax.random.randint(keys[5], (rows,), 0, len(self.prompts)),
        }

    def corrupt_with(self, params: Params, codes: Array, draw: Mapping[str, Array]) -> Corrupted:
        """Corrupt codes with given random inputs.

        Args:
          params: Parameters with the part "prompts".
          codes: Codes from `precompute`.
          draw: `timesteps` `[batch]`; `noise`, standard normal in the shape of the latents; `posterior`
            `[batch, 2, …]`, standard normal, to sample the latents of image and masked image; `prompt`
            `[batch]`, indices of prompts.

        Returns:
          `inputs` `[batch, height, width, 9]`: noisy latents, mask, latents of the masked image; the other
          inputs of the U-Net, `timesteps`, `prompt` (and `added` for SDXL); the latents `clean`, their
          `noise`, and `mask`.
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
        """Sample scaled latents, given standard normal `noise`."""
        sample = mean + jnp.exp(0.5 * log_variance) * noise
        return (sample - self.vae.shift_factor) * self.vae.scaling_factor

    def _means(self, mean: Array, log_variance: Array) -> Array:
        return self._latents(mean, log_variance, jnp.zeros_like(mean))

    def _with_clean(self, corrupted: Corrupted, masked: Array, clean: Array, noise: Array) -> Corrupted:
        noisy = self.schedule.add_noise(clean, noise, corrupted["timesteps"])
        inputs = jnp.concatenate([noisy, corrupted["mask"], masked], axis=-1)
        return {**corrupted, "inputs": inputs, "clean": clean, "noise": noise}

    def _conditioning(self, prompts: Params, numbers: Array) -> dict[str, Any]:
        """Return the U-Net's inputs in addition to latents, for prompts given by index `[batch]`."""
        conditioning: dict[str, Any] = {"prompt": jnp.take(jnp.asarray(prompts["words"]), numbers, axis=0)}
        if self._pooled_width:
            size = float(self.image_size)
            sizes = jnp.broadcast_to(jnp.array([[size, size, 0, 0, size, size]]), (len(numbers), 6))
            conditioning["added"] = {
                "pooled": jnp.take(jnp.asarray(prompts["pooled"]), numbers, axis=0),
                "sizes": sizes,
            }
        return conditioning

    def encode(self, encoder_params: Any, corrupted: Corrupted) -> tuple[Array, ...]:
        """Return all skip connections, then the output of the middle block, `[batch, …, …, …]` each."""
        features = self._features(encoder_params, corrupted)
        return (*features.skips, features.hidden)

    def _features(self, encoder_params: Any, corrupted: Corrupted) -> Features:
        inputs = (corrupted[name] for name in ("inputs", "timesteps", "prompt"))
        return apply(self.encoder, encoder_params, *inputs, corrupted.get("added"))

    def predict(self, params: Params, corrupted: Corrupted) -> Array:
        """Return the predicted noise (or v, see `Schedule`), float32, in the shape of the latents."""
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
        """Replace the latents inside the mask by the mean latents of `truth`."""
        return images, self._with_truth(corrupted, self._means(*self._moments(params, truth)))

    def noisy_truth(
        self, images: Array, corrupted: Corrupted, noise: Array, rng: Array, axis_name: str | None = None
    ) -> tuple[Array, Corrupted]:
        """Replace the latents inside the mask by standard normal noise."""
        drawn = draw_rows(lambda n: jax.random.normal(rng, (n, *self.latent_shape)), len(images), axis_name)
        return images, self._with_truth(corrupted, drawn)

    def _with_truth(self, corrupted: Corrupted, truth: Array) -> Corrupted:
        clean = jnp.where(corrupted["mask"] > 0, truth, corrupted["clean"])
        masked = corrupted["inputs"][..., -self.vae.latent_channels :]
        return self._with_clean(corrupted, masked, clean, corrupted["noise"])

    def vae_loss(self, params: Params, inputs: tuple[Array, Array]) -> Array:
        """Return squared error plus weighted KL divergence of the VAE, `[batch]`; `inputs`: images and noise.

        This suffices for small images; published VAEs add perceptual and adversarial losses.
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
        """Inpaint the mask by deterministic reverse diffusion from noise; visible pixels are unchanged."""
        inpainted = self.inpaint_with(params, images, mask, *self._noises(rng, len(images)))
        return self._paste(images, mask, inpainted)

    def _paste(self, images: Array, mask: np.ndarray, inpainted: Array) -> Array:
        """Return images with the masked region replaced by clipped `inpainted` images."""
        return jnp.where(mask[None, ..., None], jnp.clip(inpainted, *self.value_range), images)

    def _noises(self, rng: Array, rows: int) -> tuple[Array, Array]:
        """Sample the initial noise and the noise of the masked image's latents."""
        shape = (rows, *self.latent_shape)
        return tuple(jax.random.normal(key, shape) for key in jax.random.split(rng))  # type: ignore[return-value]

    def inpaint_with(
        self, params: Params, images: Array, mask: np.ndarray, noise: Array, posterior: Array, **options: Any
    ) -> Array:
        """Return complete decoded images, given standard normal noise in the shape of the latents.

        `noise` holds the initial latents; `posterior` is used to sample the latents of the masked image;
        `options` are passed to `_steps`.
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
        """Run all except the first `skipped` steps; `draws`, a key and a noise scale, makes steps random."""

        def take(latents, time):
            drawn = None
            if draws is not None:
                drawn = draws[1] * jax.random.normal(jax.random.fold_in(draws[0], time), latents.shape)
            return self.schedule.step(predict(latents, time), latents, time, self.sample_steps, drawn), None

        times = jnp.asarray(self.schedule.timesteps(self.sample_steps)[skipped:])
        return jax.lax.scan(jax.checkpoint(take) if remat else take, latents, times)[0]

    def _guided(self, params: Params, latents: Array, mask: Array, masked: Array, time: Array) -> Array:
        """Return the prediction for `prompt`, guided away from the prediction for the empty prompt."""
        rows = len(latents)
        inputs = jnp.concatenate([latents, mask, masked], axis=-1)

        def predict(prompt: str) -> Array:
            numbers = jnp.full(rows, self.prompts.index(prompt))
            conditioning = self._conditioning(params["prompts"], numbers)
            return self.predict(params, {"inputs": inputs, "timesteps": jnp.full(rows, time), **conditioning})

        if self.guidance_scale is None:
            return predict(self.prompt)
        plain = predict("")
        return plain + self.guidance_scale * (predict(self.prompt) - plain)

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Draw a sample; the misfit is the squared error in a ring of visible pixels that is also masked.

        Steps are recomputed in the backward pass.
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
        """Return the mean square of the predicted noise inside the mask, at a tenth of the time steps."""
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
