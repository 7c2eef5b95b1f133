"""Palette: image-to-image diffusion for inpainting (Saharia et al. 2022), and its unlearning.

A reimplementation of Janspiry's Palette and the code of Li et al. 2024 that builds on it. The encoder is the
input half of the U-Net with the middle block and the γ embedding; the decoder is the output half.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax import masks
from l2l_jax.models.base import DTYPES, Corrupted, Count, Model, Number, Params, Size, Sizes, register
from l2l_jax.models.layers import apply, in_dtype
from l2l_jax.models.palette import convert, diffusion
from l2l_jax.models.palette.unet import Decoder, Encoder, UNetConfig
from l2l_jax.utils.batch_axis import draw_rows

# A function from step index to the noise of that step
Draw = Callable[[Array], Array]


@register("palette")
@dataclasses.dataclass(frozen=True)
class Palette(Model):
    """Diffusion inpainting over square images; the defaults are the published Places model.

    Attributes:
      image_size: Side of the images in pixels, a multiple of 2^(levels − 1).
      inner_channel, channel_mults, res_blocks, attn_res, num_head_channels, norm_groups: Sizes of the U-Net,
        see `UNetConfig`. Small models need fewer groups.
      schedule, timesteps, linear_start, linear_end: Noise variances β of training and unlearning, see
        `diffusion.beta_schedule`.
      sampler: "ancestral": `inpaint` takes every step of the sampling schedule, as published; "ddim": it
        takes `sampling_steps` deterministic steps spread over the *training* schedule, whose noise levels the
        network was trained on; 50 is a good default.
      sampling_steps: Steps of `inpaint`. For "ancestral" this is the length of the sampling schedule; fewer
        steps need a larger `sampling_linear_end` to still end in noise.
      sampling_schedule, sampling_linear_start, sampling_linear_end: Noise variances of "ancestral".
      teacher_noise: Teacher input in place of forget images. "hole": as in the released code, pure noise
        inside the mask in place of the noisy image, with the real image around it and in the conditioning.
        "everywhere": the paper's formula, T of a noise image.
      training_holes: Type of training masks: "hybrid" (box and strokes, as published), "free_form", "box" or
        "centre".
      hole_bank_size, hole_seed: Number of masks that `init` generates, and their seed. Masks of the bank are
        randomly flipped and transposed when used.
      dtype: Dtype of matrix products, "float32" or "bfloat16".
      remat: See `MAE`.
    """

    image_size: Size = 256
    inner_channel: Size = 64
    channel_mults: Sizes = (1, 2, 4, 8)
    res_blocks: Count = 2
    attn_res: tuple[Size, ...] = (16,)
    num_head_channels: Size = 32
    norm_groups: Size = 32
    schedule: diffusion.BetaSchedule = "linear"
    timesteps: int = 2000
    linear_start: Number = 1e-6
    linear_end: Number = 0.01
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    sampling_steps: Size = 2000
    sampling_schedule: diffusion.BetaSchedule = "linear"
    sampling_linear_start: Number = 1e-4
    sampling_linear_end: Number = 0.09
    teacher_noise: Literal["hole", "everywhere"] = "hole"
    training_holes: masks.TrainingMask = "hybrid"
    hole_bank_size: int = 512
    hole_seed: Count = 0
    value_range: tuple[float, float] = (-1.0, 1.0)
    channels: Size = 3
    dtype: str = "float32"
    remat: bool = False

    FORMATS = (convert.Format(),)  # not annotated, so not dataclass fields
    TRAINED_WITH = (
        *("num_head_channels", "norm_groups", "schedule", "timesteps", "linear_start", "linear_end"),
        "value_range",
    )
    corruption_parts = ("holes",)
    attention_layers = ("qkv", "proj_out")

    def __post_init__(self):
        choices = dict(sampler=("ancestral", "ddim"), teacher_noise=("hole", "everywhere"), dtype=DTYPES)
        self._check_fields({}, **choices, training_holes=masks.TRAINING_MASKS)
        factor = 2 ** (len(self.channel_mults) - 1)
        if self.image_size % factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {factor}")
        if self.timesteps < 2 or self.hole_bank_size < 1:
            raise ValueError("timesteps must be 2 or more and hole_bank_size 1 or more")
        _ = self.unet, self.betas, self.reverse_steps  # constructing them validates the other fields

    @property
    def unet(self) -> UNetConfig:
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(UNetConfig)}
        return UNetConfig(**sizes | {"dtype": jnp.dtype(self.dtype)})

    def canonical(self) -> "Palette":
        """Remove entries of `attn_res` that match no level of the U-Net."""
        factors = [2**level for level in range(len(self.channel_mults))]
        return dataclasses.replace(self, attn_res=tuple(f for f in factors if f in self.attn_res))

    @property
    def betas(self) -> np.ndarray:
        """Noise variances of training, float64 `[timesteps]`."""
        return diffusion.beta_schedule(self.schedule, self.timesteps, self.linear_start, self.linear_end)

    @property
    def reverse_steps(self) -> diffusion.ReverseSteps:
        if self.sampler == "ddim":
            return diffusion.ddim_steps(self.betas, self.sampling_steps)
        ends = self.sampling_linear_start, self.sampling_linear_end
        betas = diffusion.beta_schedule(self.sampling_schedule, self.sampling_steps, *ends)
        return diffusion.ancestral_steps(betas)

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.unet)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.unet, self.channels)

    def init(self, rng: Array) -> Params:
        """Return initial parameters and the bank of training masks, which depends only on `hole_seed`."""
        encoder_rng, decoder_rng = jax.random.split(rng)
        side = 2 ** (len(self.channel_mults) - 1)  # parameter shapes do not depend on the resolution
        (features, embedding), variables = self.encoder.init_with_output(
            encoder_rng, jnp.zeros((1, side, side, 2 * self.channels)), jnp.zeros(1)
        )
        return {
            "encoder": variables["params"],
            "decoder": self.decoder.init(decoder_rng, features, embedding)["params"],
            **self.derived_parts(),
        }

    def derived_parts(self) -> Params:
        """Return the bank of training masks "holes", bool `[mask, height, width]`."""
        bank = masks.mask_bank(self.training_holes, self.hole_bank_size, self.image_size, self.hole_seed)
        return {"holes": jnp.asarray(bank)}

    def in_compute_dtype(self, params: Params) -> Params:
        return in_dtype(params, jnp.dtype(self.dtype), float32=("encoder/cond_embed", "decoder/out_conv"))

    def corrupt(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Sample a mask, fill it with noise and add noise of a random level inside it; see `corrupt_with`."""
        rows, *shape = images.shape
        draw = draw_rows(lambda n: self.draw(params, (n, *shape), rng), rows, axis_name)
        return self.corrupt_with(images, draw)

    def draw(self, params: Params, shape: tuple[int, ...], rng: Array) -> Corrupted:
        """Sample all random inputs of `corrupt` for images of `shape`; see `corrupt_with`."""
        keys = jax.random.split(rng, 6)
        batch = shape[0]
        gammas = jnp.asarray(diffusion.cumulative_gammas(self.betas), jnp.float32)
        t = jax.random.randint(keys[0], (batch,), 1, self.timesteps)
        u = jax.random.uniform(keys[1], (batch,))
        return {
            "mask": draw_masks(params["holes"], batch, keys[2], keys[3]),
            "gamma": diffusion.gamma_between(gammas, t, u),
            "filling": jax.random.normal(keys[4], shape),
            "noise": jax.random.normal(keys[5], shape),
        }

    def corrupt_with(self, images: Array, draw: dict[str, Array]) -> Corrupted:
        """Corrupt images with given random inputs.

        Args:
          images: Images `[batch, height, width, channel]`.
          draw: `mask`, bool `[batch, height, width]`; the noise level `gamma` `[batch]`; and two standard
            normal arrays in the shape of the images: `filling` of the mask in the conditioning image, and
            `noise`.

        Returns:
          `inputs` `[batch, height, width, 2 · channel]`: the conditioning image, then the noisy image, which
          is exact outside the mask; `gamma`, `noise` and `mask` as given.
        """
        mask = draw["mask"][..., None]
        conditioning = jnp.where(mask, draw["filling"], images)
        noisy = jnp.where(mask, diffusion.q_sample(images, draw["gamma"], draw["noise"]), images)
        kept = {name: draw[name] for name in ("gamma", "noise", "mask")}
        return {"inputs": jnp.concatenate([conditioning, noisy], axis=-1), **kept}

    def corrupt_noise(
        self, params: Params, images: Array, noise: Array, rng: Array, axis_name: str | None = None
    ) -> Corrupted:
        """Return the teacher's input according to `teacher_noise`; "hole" does not use `noise`."""
        if self.teacher_noise == "everywhere":
            return self.corrupt(params, noise, rng, axis_name)
        return self.pure_noise_inside(self.corrupt(params, images, rng, axis_name))

    def pure_noise_inside(self, corrupted: Corrupted) -> Corrupted:
        """Replace the noisy image by pure noise inside the mask.

        The released code writes √(1 − γ) · noise + (1 − √(1 − γ)) · noise there, which equals the noise.
        """
        conditioning, noisy = jnp.split(corrupted["inputs"], 2, axis=-1)
        noisy = jnp.where(corrupted["mask"][..., None], corrupted["noise"], noisy)
        return {**corrupted, "inputs": jnp.concatenate([conditioning, noisy], axis=-1)}

    def encode(self, encoder_params: Any, corrupted: Corrupted) -> tuple[Array, ...]:
        """Return the outputs of all input blocks, then of the middle block, `[batch, …, …, …]` each."""
        return apply(self.encoder, encoder_params, corrupted["inputs"], corrupted["gamma"])[0]

    def predict(self, params: Params, corrupted: Corrupted) -> Array:
        """Return the predicted noise, float32, in the shape of the images."""
        return self.encode_and_predict(params, corrupted)[1]

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[Any, Array]:
        encoded = apply(self.encoder, params["encoder"], corrupted["inputs"], corrupted["gamma"])
        return encoded[0], apply(self.decoder, params["decoder"], *encoded)

    def prediction_loss(self, predicted: Array, images: Array, corrupted: Corrupted) -> Array:
        del images
        return self.imitation_loss(predicted, corrupted, corrupted["noise"])

    def imitation_loss(self, predicted: Array, corrupted: Corrupted, target: Array) -> Array:
        """Return the squared error to `target` noise in the mask, averaged over the image as in Palette."""
        error = jnp.square(predicted - target)
        return jnp.where(corrupted["mask"][..., None], error, 0).mean(axis=(1, 2, 3))

    def with_truth(
        self, params: Params, images: Array, corrupted: Corrupted, truth: Array
    ) -> tuple[Array, Corrupted]:
        """Compute the noisy image inside the mask from `truth`, with the same noise as the target."""
        conditioning, _ = jnp.split(corrupted["inputs"], 2, axis=-1)
        noisy = diffusion.q_sample(truth, corrupted["gamma"], corrupted["noise"])
        noisy = jnp.where(corrupted["mask"][..., None], noisy, images)
        return images, {**corrupted, "inputs": jnp.concatenate([conditioning, noisy], axis=-1)}

    def noisy_truth(
        self, images: Array, corrupted: Corrupted, noise: Array, rng: Array, axis_name: str | None = None
    ) -> tuple[Array, Corrupted]:
        """Apply `pure_noise_inside`, as in the released code: the mask contains nothing but noise."""
        return images, self.pure_noise_inside(corrupted)

    @property
    def inpaint_passes(self) -> int:
        return self.sampling_steps

    def inpaint(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        return self.inpaint_with(params, images, mask, *_draws(rng, images.shape))

    def inpaint_with(self, params: Params, images: Array, mask: Any, filling: Array, draw: Draw) -> Array:
        """Inpaint with given random inputs: standard normal arrays in the shape of the images.

        `filling` fills the mask initially, and in the conditioning image throughout; `draw(step)` is the
        noise of steps 0, 1, …, which are traced values.
        """
        conditioning, run = self._process(params, images, mask, filling, draw)
        return run(conditioning)

    def _process(
        self, params: Params, images: Array, mask: Any, filling: Array, draw: Draw
    ) -> tuple[Array, Callable]:
        """Return the conditioning image, and a function that runs reverse steps from a noisy image."""
        mask = jnp.asarray(self._check_mask(mask))[None, ..., None]
        conditioning = jnp.where(mask, filling, images)

        def take(noisy, numbered):
            number, step = numbered
            gamma = jnp.broadcast_to(step.gamma, noisy.shape[:1])
            corrupted = {"inputs": jnp.concatenate([conditioning, noisy], axis=-1), "gamma": gamma}
            noise = self.predict(params, corrupted), draw(number)
            noisy = diffusion.reverse_step(step, noisy, *noise, self.value_range)
            return jnp.where(mask, noisy, images), None

        def run(noisy, steps=self.reverse_steps, skipped=0, remat=False):
            steps = jax.tree.map(lambda x: jnp.asarray(x[skipped:]), steps)
            numbered = jnp.arange(skipped, self.sampling_steps), steps
            return jax.lax.scan(jax.checkpoint(take) if remat else take, noisy, numbered)[0]

        return conditioning, run

    why_no_samples = why_no_noise = ""

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Draw a sample; the misfit is the squared error in a ring of visible pixels that is also masked.

        Steps are recomputed in the backward pass.
        """
        grown = masks.grow(mask, max(1, self.image_size // 16))
        filling, draw = _draws(rng, images.shape)
        start, run = self._process(params, images, grown, filling if noise is None else noise, draw)
        drawn = run(start, remat=True)
        return drawn, jnp.square(drawn - images)[:, grown & ~mask].mean(axis=(1, 2))

    def denoise(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, start: float, scale: float
    ) -> Array:
        filling, draw = _draws(rng, images.shape)
        noisy, run = self._process(params, images, mask, filling, draw)
        skipped = min(round((1 - start) * self.sampling_steps), self.sampling_steps - 1)
        steps = diffusion.random_steps(self.reverse_steps, scale)
        if skipped:
            hint = diffusion.q_sample(images, jnp.full(len(images), steps.gamma[skipped]), filling)
            noisy = jnp.where(mask[None, ..., None], hint, images)
        return run(noisy, steps, skipped)

    def noise_norm(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Return the mean square of the predicted noise inside the mask, at a tenth of the time steps."""
        gamma = diffusion.cumulative_gammas(self.betas)[self.timesteps // 10]
        conditioning = jnp.where(mask[None, ..., None], jax.random.normal(rng, images.shape), images)
        inputs = jnp.concatenate([conditioning, images], axis=-1)
        predicted = self.predict(params, {"inputs": inputs, "gamma": jnp.full(len(images), gamma)})
        return jnp.square(predicted)[:, mask].mean(axis=(1, 2))


def draw_masks(bank: Array, rows: int, choice_rng: Array, turn_rng: Array) -> Array:
    """Choose masks from a bank, bool `[rows, height, width]`, and randomly flip and transpose them."""
    bank = jnp.asarray(bank)  # loaded checkpoints hold NumPy arrays
    chosen = bank[jax.random.randint(choice_rng, (rows,), 0, bank.shape[0])]
    turns = jax.random.bernoulli(turn_rng, shape=(3, rows, 1, 1))
    chosen = jnp.where(turns[0], chosen[:, ::-1], chosen)
    chosen = jnp.where(turns[1], chosen[:, :, ::-1], chosen)
    return jnp.where(turns[2], chosen.swapaxes(1, 2), chosen)


def _draws(rng: Array, shape: tuple[int, ...]) -> tuple[Array, Draw]:
    """Return the initial noise, and a function from step index to the noise of that step."""
    filling_rng, step_rng = jax.random.split(rng)

    def draw(step):
        return jax.random.normal(jax.random.fold_in(step_rng, step), shape)

    return jax.random.normal(filling_rng, shape), draw
