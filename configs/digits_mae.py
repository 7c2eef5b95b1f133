"""Forget the handwritten digits 5 to 9 with a masked autoencoder and retain 0 to 4.

    python -m l2l_jax.main --config=configs/digits_mae.py
    python -m l2l_jax.main --config=configs/digits_mae.py:encoder

The images come with scikit-learn and the small MAE with this package; nothing is downloaded. The method
`undo` keeps the encoder's weights, mixes the decoder's with fresh ones and retrains both within a retain
budget. The test images are inpainted with a center square of half the side masked, and an audit attacks
the result. The variant `encoder` is the paper's method, which does not change the decoder.

Hardware: two CPU cores, 1.6 GiB of memory.
Expected metrics on test images, medians of seeds 0, 1 and 2: accuracy of the original model 0.96 (retain)
and 0.93 (forget); after unlearning 0.94 and 0.26, with a masked MSE of 1.17 times the original's on retain
images and 8 times on forget images. With `encoder`, seed 0: 0.94 and 0.28, 1.25 times and 10 times.
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import DIGITS, PAPER, SMALL, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "encoder"."""
    model = dict(family="mae", pretrained="digits_mae", image_size=16, patch_size=4, mask_ratio=0.4)
    model |= dict(width=96, depth=4, num_heads=4, decoder_width=64, decoder_depth=2, decoder_num_heads=4)
    model |= dict(pixel_mean=(0.3, 0.3, 0.3), pixel_std=(0.37, 0.37, 0.37))
    training = dict(weight_decay=0.1, beta2=0.99)
    pretrain = dict(model=dict(steps=2500, learning_rate=4e-3, warmup_steps=100, **training))
    undo = dict(perturb=0.8, feature_weight=1.5, forget_every=4)
    unlearn = dict(steps=520, learning_rate=7e-3, warmup_steps=50, retain_budget=1.15, alpha=0.07, undo=undo)
    config = dict(model=model, pretrain=pretrain, unlearn=unlearn | training)
    encoder = dict(unlearn=dict(steps=800, warmup_steps=20, retain_budget=1.25, alpha=0.2))
    return combine(variant, SMALL, DIGITS, config, encoder=[PAPER, encoder])
