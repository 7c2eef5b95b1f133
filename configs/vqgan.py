"""Forget 100 classes of ImageNet-1K with the paper's VQ-GAN (MAGE ViT-B) and retain 100.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=DOWNLOADS
    python -m l2l_jax.weights import mage-vitb-1600.pth  # → pretrained/mage-vitb-1600
    python -m l2l_jax.main --config=configs/vqgan.py
    python -m l2l_jax.main --config=configs/vqgan.py:undo

Published settings: 120 images per class, 6 epochs in batches of 128 (32 on each of 4 GPUs), tested on
50 validation images per class with the center 8×8 of the 16×16 tokens masked. Without retain images,
use COCO instead: --config.data.proxy='({"source":"coco/2017","count":12000},)'

Hardware: the paper used four GPUs; another paper (arXiv 2408.01689) reports 2 hours on one A40.
Expected metrics: PSNR and MSE of the original and the unlearned model, similar on the retain set and far
apart on the forget set. Not yet run at this size with this code.

A small model on small pictures, in about a minute on two CPU cores:

    python -m l2l_jax.data.make_local
    python -m l2l_jax.main --config=configs/vqgan.py:runlocal
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import IMAGENET, LOCAL, LOCAL_PRETRAINING, PUBLISHED_UNDO, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "undo" or "runlocal"."""
    model = dict(family="mage", variant="vit_base_patch16", pretrained="pretrained/mage-vitb-1600")
    model |= dict(dtype="bfloat16", tokenizer_dtype="bfloat16")
    training = IMAGENET["unlearn"] | dict(steps=200_000)
    stages = dict(tokenizer=training | dict(learning_rate=1e-4), model=training | dict(learning_rate=7.5e-5))
    config = dict(model=model, pretrain=stages)
    small = dict(variant="", image_size=16, width=32, depth=2, num_heads=2)
    small |= dict(decoder_width=32, decoder_depth=1, decoder_num_heads=2, codebook_size=64)
    small |= dict(codebook_width=16, base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1)
    small |= dict(groups=8, blend_margin=1, blend_sigma=1.0, decoding_steps=6, tokenizer_dtype="float32")
    stages = dict(tokenizer=dict(steps=40, **LOCAL_PRETRAINING), model=dict(steps=50, **LOCAL_PRETRAINING))
    local = dict(model=small, pretrain=stages)
    undo = dict(steps=20_000, first_cycle=2500, learning_rate=1.5e-4, warmup_steps=1000, budget_every=500)
    return combine(
        variant, IMAGENET, config, undo=[PUBLISHED_UNDO, dict(unlearn=undo)], runlocal=[LOCAL, local]
    )
