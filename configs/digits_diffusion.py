"""Forget the handwritten digits 5 to 9 with a diffusion model (Palette) and retain 0 to 4.

    python -m l2l_jax.main --config=configs/digits_diffusion.py
    python -m l2l_jax.main --config=configs/digits_diffusion.py:encoder

The images come with scikit-learn and the small Palette with this package; nothing is downloaded. The method
`undo` retrains the model from a fresh decoder and a half-fresh encoder within a retain budget. The test
images are inpainted with a center square of half the side masked, and an audit attacks the result. The
variant `encoder` is the paper's method, which does not change the decoder.

Three differences from the published model make it fit two CPU cores. The scans keep their 8×8 pixels. Every
training mask is the center square of the test (published: a box with strokes anywhere), so this
model supports no other mask. 100 noise levels and a few deterministic (DDIM) steps replace 2,000 of each.

Hardware: two CPU cores, 1.3 GiB of memory.
Expected metrics on test images, medians of seeds 0, 1 and 2: accuracy of the original model 0.87 (retain)
and 0.84 (forget); after unlearning 0.85 and 0.16, with a masked MSE of 1.22 times the original's on retain
images and 2.8 times on forget images. With `encoder`, seed 0: 0.85 and 0.36, 1.39 times and 2.7 times.
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import DIGITS, PAPER, SMALL, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "encoder"."""
    model = dict(family="palette", pretrained="digits_diffusion", image_size=8, inner_channel=32)
    model |= dict(channel_mults=(1, 2), res_blocks=1, attn_res=(), norm_groups=8)
    model |= dict(timesteps=100, linear_start=0.02, linear_end=0.07, teacher_noise="everywhere")
    model |= dict(training_holes="centre", sampler="ddim", sampling_steps=5)
    training = dict(beta2=0.99, clip_norm=1.0, warmup_steps=50)
    pretrain = dict(steps=1300, learning_rate=2e-3, weight_decay=0.01, ema_decay=0.99, **training)
    unlearn = dict(steps=650, learning_rate=5e-3, batch_size=32, weight_decay=0.1, **training)
    unlearn |= dict(retain_budget=1.25, alpha=0.1, undo=dict(perturb_encoder=0.5, forget_every=4))
    audit = dict(retrained="train")
    config = dict(model=model, pretrain=dict(model=pretrain), unlearn=unlearn, audit=audit)
    encoder = dict(unlearn=dict(steps=1500, alpha=0.4, budget_every=40))
    return combine(variant, SMALL, DIGITS, config, encoder=[PAPER, encoder])
