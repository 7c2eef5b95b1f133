"""Small models of each family, large enough that some parameters are split over devices."""

import jax
import numpy as np

from l2l_jax.models.latent_diffusion.model import LatentDiffusion
from l2l_jax.models.latent_diffusion.unet import UNetSizes
from l2l_jax.models.latent_diffusion.vae import VAESizes
from l2l_jax.models.mae.model import MAE
from l2l_jax.models.mage.model import MAGE
from l2l_jax.models.palette.model import Palette

SMALL = dict(width=32, depth=1, num_heads=2, decoder_width=32, decoder_depth=1, decoder_num_heads=2)
TOKENIZER = dict(codebook_size=16, codebook_width=4, base_channels=4, channel_multipliers=(1, 1), groups=2)
MASKS = dict(hidden_margin=0, blend_margin=0, blend_sigma=0.0)
UNET = dict(inner_channel=8, channel_mults=(4,), res_blocks=1, attn_res=(), num_head_channels=8)
LATENTS = dict(block_out_channels=(16,), attends=(True,), layers_per_block=(1,), transformer_layers=(1,))
LATENTS |= dict(heads=(2,), cross_attention_dim=8, norm_groups=2)
VAE = VAESizes(block_out_channels=(4, 4), layers_per_block=1, norm_groups=2, scaling_factor=1.0)
MODELS = {
    "mae": MAE(image_size=8, patch_size=4, mask_ratio=0.5, **SMALL),
    "mage": MAGE(image_size=8, num_res_blocks=1, **SMALL, **TOKENIZER, **MASKS),
    "palette": Palette(image_size=8, norm_groups=2, hole_bank_size=4, **UNET),
    "latent_diffusion": LatentDiffusion(
        image_size=8,
        unet=UNetSizes(**LATENTS),
        vae=VAE,
        prompts=("", "a photo"),
        prompt_words=3,
        hole_bank_size=4,
        sample_steps=2,
    ),
}


def params_of(model, seed=0):
    """Return random parameters without zeros, so that all parameters have a gradient."""
    shapes, rng = model.shapes(), np.random.default_rng(seed)

    def leaf(path, x):
        if x.dtype == bool:
            return np.broadcast_to(np.arange(x.shape[1]) < 4, x.shape)
        scale = getattr(path[-1], "key", None) == "scale"
        return (scale + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def images_of(family, steps, rows):
    """Return `steps` batches of retain and forget images."""
    model, rng = MODELS[family], np.random.default_rng(1)
    low, high = model.value_range
    for _ in range(steps):
        images = rng.random((2, rows, *model.image_shape), np.float32)
        yield dict(zip(("retain", "forget"), low + (high - low) * images, strict=True))
