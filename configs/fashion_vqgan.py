"""Forget the sandals, shirts, sneakers, bags and boots of Fashion-MNIST with a VQ-GAN (MAGE).

    python -m l2l_jax.main --config=configs/fashion_vqgan.py
    python -m l2l_jax.main --config=configs/fashion_vqgan.py:encoder

The package includes a small tokenizer and the MAGE on its codes, pretrained on all 60,000 training images,
and the 5,000 of them that unlearning uses; nothing is downloaded. The method `undo` retrains MAGE from
partly fresh weights within a retain budget. The test images are inpainted with a center square of half the
side masked, and an audit attacks the result. The variant `encoder` is the paper's method, which does not
change the decoder.

Differences from the published model, all due to the small size: a code represents 4×4 pixels, and the mask
touches 25 of the 49 codes; no code is dropped; masked squares are painted before the codes next to them are
computed, also in training (`paint_masked`); the most likely codes are chosen instead of sampled ones.

Hardware: two CPU cores, 1.3 GiB of memory; about ten minutes, of which the audit takes seven.
Expected metrics on test images, seed 0: accuracy of the original model 0.55 (retain) and 0.62 (forget); after
unlearning 0.57 and 0.17 (black squares, classified as sandals), with a masked MSE of 1.18 times the
original's on retain images and 3.6 times on forget images. The model retrained without the forget classes:
0.62 and 0.08, 1.03 times and 2.8 times. The verdict is "undecided" by one comparison, whose upper bound
exceeds its margin by 0.001; seeds 1 and 2 are "forgotten" under three attacks (research/fashion.md).
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import FASHION, PAPER, SMALL, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "encoder"."""
    model = dict(family="mage", pretrained="fashion_vqgan", image_size=28, width=64, depth=4, num_heads=4)
    model |= dict(decoder_width=48, decoder_depth=1, decoder_num_heads=4)
    model |= dict(codebook_size=64, codebook_width=8, base_channels=24, channel_multipliers=(1, 1, 1))
    model |= dict(num_res_blocks=0, groups=4, embedding_std=0.4)  # 0.02, as published, learns slowly
    model |= dict(dropped=0.0, mask_mean=0.5, mask_std=0.1, dropout=0.05, label_smoothing=0.03)
    model |= dict(paint_masked=True, hole_color=(0.287, 0.287, 0.287), decoding_steps=4)
    model |= dict(hidden_margin=0, blend_margin=0, blend_sigma=0.0)
    model |= dict(choice_temperature=0.0, sampling_temperature=0.0)
    training = dict(learning_rate=3e-3, beta2=0.99, batch_size=32)
    pretrain = dict(tokenizer=dict(steps=3000, warmup_steps=100, **training))
    pretrain |= dict(model=dict(steps=6000, warmup_steps=150, weight_decay=0.1, ema_decay=0.995, **training))
    config = dict(model=model, pretrain=pretrain, unlearn=dict(retain_budget=1.25))
    encoder = dict(steps=500, batch_size=32, warmup_steps=20, alpha=0.25, budget_every=30)
    return combine(variant, SMALL, FASHION, config, encoder=[PAPER, dict(unlearn=encoder)])
