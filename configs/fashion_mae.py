"""Forget the sandals, shirts, sneakers, bags and boots of Fashion-MNIST with a masked autoencoder.

    python -m l2l_jax.main --config=configs/fashion_mae.py
    python -m l2l_jax.main --config=configs/fashion_mae.py:encoder

The package includes a small MAE, pretrained on all 60,000 training images, and the 5,000 of them that
unlearning uses; nothing is downloaded. The method `undo` mixes the weights with fresh ones (more in the
decoder than in the encoder) and retrains both within a retain budget, the only unlearning option set here.
The test images are inpainted with a center square of half the side masked, and an audit attacks the result.
The variant `encoder` is the paper's method, which does not change the decoder.

Hardware: two CPU cores, 1.3 GiB of memory.
Expected metrics on test images, seed 0: accuracy of the original model 0.65 (retain) and 0.68 (forget); after
unlearning 0.66 and 0.04, with a masked MSE of 1.12 times the original's on retain images and 3.4 times on
forget images. The model retrained without the forget classes: 0.68 and 0.20, 0.97 times and 2.5 times.
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import FASHION, PAPER, SMALL, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "encoder"."""
    model = dict(family="mae", pretrained="fashion_mae", image_size=28, patch_size=7, mask_ratio=0.4)
    model |= dict(width=64, depth=3, num_heads=4, decoder_width=48, decoder_depth=1, decoder_num_heads=4)
    model |= dict(pixel_mean=(0.287, 0.287, 0.287), pixel_std=(0.354, 0.354, 0.354))
    pretrain = dict(steps=6000, learning_rate=4e-3, warmup_steps=100, weight_decay=0.1, beta2=0.99)
    config = dict(model=model, pretrain=dict(model=pretrain), unlearn=dict(retain_budget=1.15))
    encoder = dict(steps=800, warmup_steps=20, retain_budget=1.25, budget_images=500, alpha=0.2)
    return combine(variant, SMALL, FASHION, config, encoder=[PAPER, dict(unlearn=encoder)])
