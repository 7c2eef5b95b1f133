"""Forget a person in your own photographs with Stable Diffusion inpainting and retain the others.

    python -m l2l_jax.weights import stable-diffusion-inpainting  # → pretrained/stable-diffusion-inpainting
    python -m l2l_jax.main --config=configs/latent_diffusion.py --config.data.forget=bob  # of photos/bob

A LoRA of rank 8 on the attention layers of encoder and decoder is trained at 512 pixels in bfloat16. The VAE
latents of four augmented views of each photograph are computed before the first step.

Hardware: not yet run with published weights. With random weights of this size, three steps of 1 + 1 images,
eight images inpainted in four steps and the report took 18 minutes and 15.6 GB on two CPU cores;
docs/guides/scaling.md has the TPU compiler's estimates.
Expected metrics: masked MSE of the original and the unlearned model, similar on the retain set and far apart
on the forget set.

The variants train a small pipeline, VAE and U-Net, on Fashion-MNIST within two minutes on two CPU cores. Then
`runlocal` forgets five kinds of clothes with a LoRA, and `undo` retrains from a fresh decoder within a retain
budget. They take about four and six minutes of CPU time; an audit of either takes ten:

    python -m l2l_jax.main --config=configs/latent_diffusion.py:runlocal
    python -m l2l_jax.main --config=configs/latent_diffusion.py:undo

Expected metrics on test images, seed 0, on retain and forget images: masked MSE of the original 0.14 and 0.18
(gray squares: 0.40 and 0.47), after LoRA 0.15 and 0.41, after `undo` 0.14 and 0.43, of the model retrained
without the forget classes 0.13 and 0.32. Accuracy on forget images 0.62, 0.10, 0.15 and 0.27. The verdict is
"hidden" for LoRA, because 100 steps on retain images recover much of the knowledge, and "undecided" for
`undo`.
"""

from ml_collections import ConfigDict

from l2l_jax.config_bases import FASHION, combine


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "runlocal" or "undo"."""
    model = dict(family="latent_diffusion", pretrained="pretrained/stable-diffusion-inpainting")
    model |= dict(dtype="bfloat16", vae_dtype="bfloat16", remat=True)
    photos = dict(source="folder", path="photos", forget=("bob",), retain=("rest",), crop="random", flip=True)
    lora = dict(method="whole", adapter="lora", adapter_layers="attention", token_bank=4)
    training = dict(
        steps=1000, batch_size=16, learning_rate=1e-4, beta2=0.999, weight_decay=0.0, clip_norm=1.0
    )
    evaluate = dict(batch_size=8, features="none")
    config = dict(model=model, data=photos, unlearn=lora | training, evaluate=evaluate)

    unet = dict(block_out_channels=(64,), attends=(False,), layers_per_block=(1,), transformer_layers=(1,))
    unet |= dict(heads=(4,), cross_attention_dim=16, norm_groups=8)
    vae = dict(block_out_channels=(8, 16, 16), layers_per_block=1, norm_groups=4, mid_attention=False)
    small = dict(pretrained="", image_size=28, unet=unet, vae=vae | dict(scaling_factor=1.0), prompt_words=4)
    small |= dict(schedule=dict(prediction_type="v_prediction", zero_snr=True, timestep_spacing="trailing"))
    small |= dict(sample_steps=4, training_holes="centre", dtype="float32", vae_dtype="float32", remat=False)
    fast = dict(batch_size=16, warmup_steps=50, beta2=0.99, weight_decay=0.01)
    pretrain = dict(vae=dict(steps=400, learning_rate=5e-3, **fast))
    pretrain |= dict(model=dict(steps=700, learning_rate=3e-3, ema_decay=0.98, **fast))
    images = dict(train_per_class=200, test_per_class=50)
    attacks = ("retain_tuning", "relearning", "linear_probe", "membership")
    tuning = dict(retain_tuning=dict(steps=100), relearning=dict(shots=(25,), drawings=1))
    local = dict(
        model=small,
        data=dict(path="", crop="resize", flip=False, validation_fraction=0.1, **images),
        pretrain=pretrain,
        unlearn=dict(steps=200, learning_rate=3e-3, adapter_layers="attention+convolution", token_bank=1),
        evaluate=dict(batch_size=128, features="classifier"),
        audit=dict(retrained="train", attacks=attacks, membership=dict(members=500), **tuning),
    )
    undo = dict(method="undo", adapter="", token_bank=0, undo=dict(perturb=1.0, feature_weight=0.0))
    undo |= dict(steps=500, optimizer="muon", learning_rate=5e-3, alpha=0.1, retain_budget=1.25)
    undo |= dict(warmup_steps=0, budget_every=50, budget_images=200)
    return combine(variant, config, runlocal=[FASHION, local], undo=[FASHION, local, dict(unlearn=undo)])
