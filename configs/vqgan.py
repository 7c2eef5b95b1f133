"""The paper's VQ-GAN (MAGE ViT-B) forgets 100 classes of ImageNet-1K and keeps 100.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=DOWNLOADS
    python -m l2l_jax.weights import mage-vitb-1600.pth  # → pretrained/mage-vitb-1600
    python -m l2l_jax.main --config=configs/vqgan.py

Settings as published: 120 images of each class, 6 epochs in batches of 128 (32 on each of 4 GPUs), tested on
50 validation images of each class with the center 8×8 of the 16×16 tokens missing. Without retain images,
COCO may replace them: --config.data.proxy='({"source":"coco/2017","count":12000},)'

Hardware: the paper had four GPUs; another paper (arXiv 2408.01689) reports 2 hours on one A40.
Expected metrics: PSNR and MSE of the original and the unlearned model, alike on the retain set and far apart
on the forget set. Not yet run at this size with this code.

A small model on small pictures, in about a minute on two CPU cores:

    python -m l2l_jax.data.make_local
    python -m l2l_jax.main --config=configs/vqgan.py:runlocal
"""

from ml_collections import ConfigDict

from l2l_jax.errors import UserError


def get_config(variant: str = "") -> ConfigDict:
    """Return the config, or its variant "runlocal"."""
    model = dict(
        family="mage", variant="vit_base_patch16", dtype="bfloat16", tokenizer_dtype="bfloat16", scan=True
    )
    data = dict(forget=("imagenet_i2i",), retain=("imagenet_i2i",), train_per_class=120, test_per_class=50)
    data |= dict(general=("rest",), general_images=5000, validation_fraction=0.02)
    data |= dict(crop="random", proxy_crop_scale=(0.2, 0.5), flip=True, workers=8)
    training = dict(batch_size=128, warmup_steps=469, checkpoint_every=100)  # 5 epochs of warm-up
    tuning = dict(batch_size=128, learning_rate=5e-5)
    config = ConfigDict(
        dict(
            model=dict(pretrained="pretrained/mage-vitb-1600", **model),
            data=dict(source="imagenet2012", **data),
            unlearn=dict(steps=563, learning_rate=5e-5, **training),  # 6 epochs; 1e-4 × batch / 256
            pretrain=dict(
                tokenizer=dict(steps=200_000, learning_rate=1e-4, **training),
                model=dict(steps=200_000, learning_rate=7.5e-5, **training),
            ),
            evaluate=dict(
                batch_size=64, picture_per_class=1, features="none", networks=("inception", "clip")
            ),
            audit=dict(retain_tuning=tuning, relearning=tuning, fresh_decoder=tuning),
        )
    )
    if variant == "runlocal":
        _make_local(config)
    elif variant:
        raise UserError(f"vqgan has the variant runlocal, and none called {variant!r}.")
    return config


def _make_local(config: ConfigDict) -> None:
    small = dict(batch_size=16, warmup_steps=5, learning_rate=2e-3, checkpoint_every=20, log_every=5)
    config.model.update(variant="", pretrained="", image_size=16, width=32, depth=2, num_heads=2)
    config.model.update(decoder_width=32, decoder_depth=1, decoder_num_heads=2, codebook_size=64)
    config.model.update(codebook_width=16, base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1)
    config.model.update(groups=8, blend_margin=1, blend_sigma=1.0, decoding_steps=6)
    config.model.update(dtype="float32", tokenizer_dtype="float32", scan=False)
    config.data.update(
        source="folder", path="data/local", forget=("flower", "digit_1"), retain=("temple", "digit_0")
    )
    config.data.update(train_per_class=0, test_per_class=0, general=(), general_images=0, workers=1)
    config.pretrain.tokenizer.update(small, steps=40)
    config.pretrain.model.update(small, steps=50)
    config.unlearn.update(small, steps=40, learning_rate=1e-3)
    config.evaluate.update(batch_size=32, picture_per_class=3, features="classifier", networks=())
