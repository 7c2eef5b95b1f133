"""Forget 100 classes of ImageNet-1K with a masked autoencoder (MAE ViT-L) and retain 100.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=DOWNLOADS
    python -m l2l_jax.weights import mae_visualize_vit_large.pth  # → pretrained/mae_visualize_vit_large
    python -m l2l_jax.main --config=configs/mae.py
    python -m l2l_jax.main --config=configs/mae.py:undo

The paper reports this task, but its release does not include it. Images and test follow the paper (120 and
50 images per class, a center square of half the side masked); training follows the VQ-GAN, also a ViT.

Hardware: another paper (arXiv 2408.01689) reports 1 hour on one A40.
Expected metrics: PSNR and MSE of the original and the unlearned model, similar on the retain set and far
apart on the forget set. Not yet run at this size with this code.

A small model on small pictures, in about a minute on two CPU cores:

    python -m l2l_jax.data.make_local
    python -m l2l_jax.main --config=configs/mae.py:runlocal
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import IMAGENET, LOCAL, LOCAL_PRETRAINING, PUBLISHED_UNDO, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "undo" or "runlocal"."""
    model = dict(family="mae", variant="vit_large_patch16", pretrained="pretrained/mae_visualize_vit_large")
    model |= dict(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
    model |= dict(dtype="bfloat16")
    pretrain = IMAGENET["unlearn"] | dict(steps=200_000, learning_rate=7.5e-5)
    config = dict(model=model, pretrain=dict(model=pretrain))
    small = dict(variant="", image_size=32, patch_size=8, width=48, depth=2, num_heads=2)
    small |= dict(decoder_width=32, decoder_depth=1, decoder_num_heads=2, mask_ratio=0.5)
    small |= dict(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.25, 0.25, 0.25))
    local = dict(model=small, pretrain=dict(model=dict(steps=150, **LOCAL_PRETRAINING)))
    undo = dict(steps=20_000, first_cycle=2500, learning_rate=1.5e-4, warmup_steps=1000, budget_every=200)
    return combine(
        variant, IMAGENET, config, undo=[PUBLISHED_UNDO, dict(unlearn=undo)], runlocal=[LOCAL, local]
    )
