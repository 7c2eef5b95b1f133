"""The paper's VQ-GAN (MAGE ViT-B) forgets 100 classes of ImageNet-1K and keeps 100.

    python -m l2l_jax.data.prepare imagenet2012 --manual_dir=DOWNLOADS
    python -m l2l_jax.weights import mage-vitb-1600.pth          # → pretrained/mage-vitb-1600
    python -m l2l_jax.main --config=configs/vqgan.py

Settings as published, see docs/guides for the images and docs/guides for the weights: 120 images of
each class, 6 epochs in batches of 128 (32 on each of 4 GPUs), tested on 50 validation images of each class
with the centre 8×8 of the 16×16 tokens missing. Without retain images, COCO may replace them:
--config.data.proxy='({"source":"coco/2017","count":12000},)'

Hardware: the paper had four GPUs; another paper (arXiv 2408.01689) reports 2 hours on one A40.
Expected figures: psnr and mse of the original model and of the unlearned one, alike on the retain set and far
apart on the forget set. Not yet run at this size with this code, so none are given here.

A small model on small pictures, in about a minute on two CPU cores:

    python -m l2l_jax.data.make_local
    python -m l2l_jax.main --config=configs/vqgan.py:runlocal
"""

import ml_collections

from l2l_jax.errors import UserError


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe, or its variant "runlocal"; every section is checked against the class named beside it."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of everything random
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1))  # devices; -1: all that are left
    config.parallel = "jit"  # or pmap

    config.model = ml_collections.ConfigDict(dict(  # l2l_jax.models.mage.model.MAGE
        family="mage",
        variant="vit_base_patch16",  # sizes of the transformers; or vit_large_patch16
        pretrained="pretrained/mage-vitb-1600",  # what to unlearn; empty: pretrain first
        image_size=256,  # pixels
        decoder_depth=8, decoder_num_heads=16,
        embedding_std=0.02,  # of fresh embeddings
        codebook_size=1024, codebook_width=256,
        base_channels=128, channel_multipliers=(1, 1, 2, 2, 4),  # of the tokenizer: a code for 16×16 pixels
        num_res_blocks=2, groups=32,  # per level; of the group normalisation
        dropped=0.5,  # share of the codes that the encoder does not get to see
        mask_mean=0.55, mask_std=0.25,  # share of masked codes
        dropout=0.1, label_smoothing=0.1,
        hole_color=(0.485, 0.456, 0.406),  # painted into the mask before restoring
        paint_masked=False,  # paint it into masked squares while training, too
        hidden_margin=1,  # codes by which the mask is grown
        blend_margin=14, blend_sigma=7.0,  # pixels by which its border is grown and blurred
        decoding_steps=20,
        choice_temperature=6.0, sampling_temperature=1.0,  # noise on the order of decoding, on the codes
        dtype="bfloat16",  # of the computation; or float32
        tokenizer_dtype="bfloat16",  # picks 1 or 2 % other codes than float32
        remat=False,  # keep less for the backward pass and compute it again
        scan=True,  # loop over one compiled transformer block: compiles faster, on CPU runs slower
    ))

    config.data = ml_collections.ConfigDict(dict(  # l2l_jax.data.config.DataConfig
        source="imagenet2012",
        path="",  # its data_dir; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
        forget=("imagenet_i2i",),  # the published lists
        retain=("imagenet_i2i",),
        proxy=(),  # images that replace the retain images; (): none
        train_per_class=120,
        test_per_class=50,
        general=("rest",), general_images=5000,  # of neither set: is what was never touched unharmed?
        test_fraction=0.2,  # held out for testing, where the source has no test images of its own
        validation_fraction=0.02,  # of the training images: kept for choosing settings
        retain_ratio=1.0,  # share of the retain images that may be used
        retain_images="real",  # or generated: the original model makes them, from the proxies or from noise
        generated_count=0,  # how many; 0: one for each proxy or image to forget
        crop="random",  # or centre, resize
        crop_scale=(0.2, 1.0),  # share of the area
        crop_ratio=(3 / 4, 4 / 3),  # width / height
        proxy_crop_scale=(0.2, 0.5),
        flip=True,
        workers=8,  # processes that decode; one does about 900 images/s
        max_bad_fraction=0.01,
    ))

    training = dict(  # l2l_jax.train.optim.TrainingConfig
        batch_size=128,
        warmup_steps=469,  # 5 epochs
        schedule="cosine",
        weight_decay=0.05,  # not on biases and norms
        optimizer="adamw",  # or muon
        beta1=0.9, beta2=0.95,
        clip_norm=3.0,
        ema_decay=0.0,
        accumulate=1,  # parts of a batch, for gradient accumulation
        checkpoint_every=100,
        log_every=10,
    )
    config.unlearn = ml_collections.ConfigDict(dict(  # l2l_jax.config.UnlearningConfig
        method="encoder",  # or max_loss, noisy_label, retain_label, random_encoder,
        # epsilon, whole, undo, relearn_aware: docs/concepts/methods.md
        alpha=0.25,  # 0.2 in the release's command
        epsilon_ratio=0.5,  # of epsilon, in place of alpha: 0 forgets most, 1 costs least
        noise="normal",
        target="noise",  # of undo and relearn_aware: what forget images become: noise, blur or mean
        target_blur=0.1,  # of blur: standard deviation, as a share of the side
        perturb=1.0, perturb_encoder=0.0,  # of undo: shares of fresh weights in decoder and encoder
        feature_weight=1.0,  # of undo: weight of the paper's forget loss on the encoder's features
        forget_every=4,  # of undo: one in so many forget images of a batch is used
        distill=0.5,  # of undo: weight of the original's predictions against the truth, on retain images
        attack_steps=1, attack_rate=1e-3,  # of relearn_aware: the simulated attacker
        retain_budget=ml_collections.config_dict.placeholder(float),  # None: fixed alpha; docs/guides
        budget_original="",  # what the budget is relative to; "": the first model of this one's line
        budget_every=50, budget_images=200,  # steps between measurements, validation images of each set
        budget_rate=6.0,  # how fast the weight of forgetting follows
        token_bank=0, noise_bank=0,  # views of an image, noise images, whose codes are computed once; 0: none
        saliency=1.0,  # share of the weights, with the largest forget gradient, that may change; 1: all
        saliency_reset=False,  # start from fresh values of these weights
        adapter="", adapter_rank=8,  # train beside the weights: lora or norms; "": the weights themselves
        steps=563,  # 6 epochs of 12,000 retain and 12,000 forget images
        learning_rate=5e-5,  # 1e-4 × batch / 256
        **training,
    ))
    # Used only where model.pretrained is empty: both stages of MAGE, on the images of `data`.
    config.pretrain = ml_collections.ConfigDict(dict(
        tokenizer=dict(steps=200_000, learning_rate=1e-4, **training),
        model=dict(steps=200_000, learning_rate=7.5e-5, **training),
    ))

    config.evaluate = ml_collections.ConfigDict(dict(  # l2l_jax.evals.config.EvaluationConfig
        tasks=("centre_8",),  # 8/16 of the side; "paper": both tables of the paper
        batch_size=64,
        picture_per_class=1,
        features="none",  # psnr and mse; "classifier": more, by a small classifier trained on the spot
        write_images=False,  # originals and restorations as PNG in evaluation/images
        networks=("inception", "clip"),  # published ones, where their files are
        inception="", resnet50="", clip="",  # their files; empty: looked for in the folder of weights
        resize="clean-fid",  # for inception; or pytorch-fid
        network_batch_size=32,  # images per compiled call of a network
    ))

    config.audit = ml_collections.ConfigDict(dict(  # l2l_jax.audit.config.AuditConfig
        enabled=False,  # each of the models costs 1,750 training steps and 20 restorations of all test images
        attacks=("retain_tuning", "relearning", "fresh_decoder", "linear_probe", "membership"),  # and views
        retrained="",  # folder of a model that never saw the images to forget; or train; empty: there is none
        steps=400,  # of tuning on retain images
        decoder_steps=600,  # of fresh decoders
        batch_size=128, learning_rate=5e-5,  # of both
        shots=(5, 25, 100),  # forget images of relearning
        shot_steps=50, shot_learning_rate=5e-5,
        seeds=1,  # repetitions of what is trained
        pixel_change=8.0,  # of views: 255ths of the range
    ))
    if variant == "runlocal":
        _make_local(config)
    elif variant:
        raise UserError(f"configs/vqgan.py has the variant runlocal, and none called {variant!r}.")
    return config


def _make_local(config: ml_collections.ConfigDict) -> None:
    small = dict(batch_size=16, warmup_steps=5, checkpoint_every=20, log_every=5)
    config.model.update(
        variant="", pretrained="", image_size=16,
        width=32, depth=2, num_heads=2, decoder_width=32, decoder_depth=1, decoder_num_heads=2,
        codebook_size=64, codebook_width=16, base_channels=16, channel_multipliers=(1, 2),
        num_res_blocks=1, groups=8, blend_margin=1, blend_sigma=1.0, decoding_steps=6, dtype="float32",
        tokenizer_dtype="float32", scan=False,
    )
    config.data.update(
        source="folder", path="data/local", forget=("flower", "digit_1"), retain=("temple", "digit_0"),
        train_per_class=0, test_per_class=0, general=(), general_images=0,
        workers=1,
    )
    config.pretrain.tokenizer.update(steps=40, learning_rate=2e-3, **small)
    config.pretrain.model.update(steps=50, learning_rate=2e-3, **small)
    config.unlearn.update(steps=40, learning_rate=1e-3, **small)
    config.evaluate.update(batch_size=32, picture_per_class=3, features="classifier", networks=())
