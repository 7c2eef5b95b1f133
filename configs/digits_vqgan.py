"""A VQ-GAN (MAGE) forgets the handwritten digits 5 to 9 and keeps 0 to 4.

    python -m l2l_jax.main --config=configs/digits_vqgan.py
    python -m l2l_jax.main --config=configs/digits_vqgan.py:encoder

The embedded default of the VQ-GAN family: real images that come with scikit-learn, nothing to
download. The run starts from a small tokenizer and a MAGE on its codes that come with this package, builds a
fresh MAGE within a retain budget (the method `undo`), restores the test images with the centre square of
half the side missing, attacks the result, and writes runs/digits_vqgan/report/report.html. The variant
`encoder` is the paper's method, which leaves the decoder as it is.

Departures from the published model, all because of the size: the scans keep their own 8×8 pixels, as
4×4 codes; no code is dropped, a quarter is masked on average, as in restoration; masked squares are
painted before the codes beside them are computed, in the training of both parts (`paint_masked`); the
likeliest codes are taken instead of drawn ones.

Hardware: two CPU cores, 1.2 GiB of memory.
Expected figures on test images, medians of seeds 0, 1 and 2: accuracy of the original model 0.87 (retain)
and 0.78 (forget); after unlearning 0.89 and 0.03, the error in the mask 1.20 times the original's on retain
images and 2.8 times on forget images. With `encoder`, seed 0: 0.82 and 0.07, 1.18 times and 2.6 times.
(A model of codes commits itself to one likely digit where the MAE blends all of them: its restorations
start at a greater error, so that there is less left to lose.)

Any field can be changed on the command line: --config.unlearn.alpha=0.5
"""

import ml_collections

from l2l_jax.errors import UserError


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; every section is checked against the class named beside it.

    Args:
      variant: "encoder": the paper's method, which retrains the encoder alone.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0  # of everything random
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1))  # devices; -1: all that are left
    config.parallel = "jit"  # or pmap

    config.model = ml_collections.ConfigDict(dict(  # l2l_jax.models.mage.model.MAGE
        family="mage",
        pretrained="digits_vqgan",  # a shipped or saved model, or a checkpoint file; "": pretrain one
        image_size=8,  # pixels: the scans as they are
        width=88, depth=4, num_heads=4,  # encoder
        decoder_width=64, decoder_depth=2, decoder_num_heads=4,
        codebook_size=32, codebook_width=8,
        embedding_std=0.4,  # of fresh embeddings; the release's 0.02 takes long to learn from
        base_channels=24, channel_multipliers=(1, 1),  # of the tokenizer: a code stands for 2×2 pixels
        num_res_blocks=0,  # per level; there are always two in the middle
        groups=4,  # of the tokenizer's group normalisation
        dropped=0.0,  # share of the codes that the encoder does not get to see
        mask_mean=0.25, mask_std=0.1,  # share of masked codes; restoration: a quarter
        dropout=0.1,
        label_smoothing=0.03,
        hole_color=(0.3, 0.3, 0.3),  # about the mean of the training images
        paint_masked=True,  # in training, too, the hole's pixels do not reach the codes beside it
        hidden_margin=0,  # codes by which the mask is grown
        blend_margin=0, blend_sigma=0.0,  # pixels: the mask is replaced and nothing else
        decoding_steps=20,  # of which those that mask less than the mask are carried out: four
        choice_temperature=0.0,  # the surest codes are fixed first
        sampling_temperature=0.0,  # the likeliest code is taken
        dtype="float32",  # or bfloat16
        tokenizer_dtype="float32",  # or bfloat16, which picks 1 or 2 % other codes
        remat=False,  # keep less for the backward pass and compute it again
        scan=False,  # loop over one compiled transformer block: compiles faster, on CPU runs slower
    ))

    config.data = ml_collections.ConfigDict(dict(  # l2l_jax.data.config.DataConfig
        source="digits",  # or folder, csv, or a data set of TensorFlow Datasets: see docs/guides/images.md
        path="",  # where the source's files are
        forget=(5, 6, 7, 8, 9),  # classes
        retain=(0, 1, 2, 3, 4),  # or rest
        proxy=(),  # what replaces the retain images while unlearning; (): nothing
        train_per_class=0, test_per_class=0,  # images; 0: all
        general=(), general_images=0,  # classes of neither set that are tested, too; or rest
        retain_ratio=1.0,  # share of the retain images that may be used
        retain_images="real",  # or generated: the original model makes them, from the proxies or from noise
        generated_count=0,  # how many; 0: one for each proxy or image to forget
        test_fraction=0.2,  # held out where the source has no test images; the digits have
        validation_fraction=0.15,  # of the training images: kept for choosing settings
        crop="resize", crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=False,  # of files
        proxy_crop_scale=None,  # of proxies; None: the same
        workers=0,  # processes that read and decode; 0: threads
        max_bad_fraction=0.01,  # of a set's images that may be impossible to decode
    ))

    config.pretrain = ml_collections.ConfigDict()
    config.pretrain.tokenizer = ml_collections.ConfigDict(dict(  # l2l_jax.train.optim.TrainingConfig
        steps=1500,
        batch_size=64,
        learning_rate=3e-3,  # peak
        warmup_steps=50,
        schedule="cosine",  # after it; or constant
        weight_decay=0.05,  # not on biases and norms
        optimizer="adamw",  # or muon
        beta1=0.9, beta2=0.99,  # AdamW
        clip_norm=3.0,  # 0: no clipping
        ema_decay=0.0,  # moving average of the parameters; 0: off
        accumulate=1,  # parts of a batch, for gradient accumulation
        checkpoint_every=500,  # steps
        log_every=20,  # steps
    ))
    config.pretrain.model = ml_collections.ConfigDict(dict(  # encoder and decoder on the codes
        steps=2400,
        batch_size=64,
        learning_rate=4e-3,
        warmup_steps=100,
        schedule="cosine",
        weight_decay=0.3,
        optimizer="adamw",  # or muon
        beta1=0.9, beta2=0.99,
        clip_norm=3.0,
        ema_decay=0.995,
        accumulate=1,
        checkpoint_every=500,
        log_every=20,
    ))

    config.unlearn = ml_collections.ConfigDict(dict(  # l2l_jax.config.UnlearningConfig
        method="undo",  # or encoder, max_loss, noisy_label, retain_label, random_encoder,
        # epsilon, whole, relearn_aware: docs/concepts/methods.md
        alpha=0.1,  # weight of forgetting
        epsilon_ratio=0.5,  # of epsilon, in place of alpha: 0 forgets most, 1 costs least
        noise="normal",  # the teacher's noise images: normal, uniform or constant
        target="noise",  # of undo and relearn_aware: what forget images become: noise, blur or mean
        target_blur=0.1,  # of blur: standard deviation, as a share of the side
        perturb=1.0, perturb_encoder=1.0,  # of undo: shares of fresh weights in decoder and encoder
        feature_weight=0.0,  # of undo: weight of the paper's forget loss on the encoder's features
        forget_every=4,  # of undo: one in so many forget images of a batch is used
        distill=0.5,  # of undo: weight of the original's predictions against the truth, on retain images
        attack_steps=1, attack_rate=1e-3,  # of relearn_aware: the simulated attacker
        retain_budget=1.25,  # greatest retain error, times the original's; 0: fixed alpha; docs/guides
        budget_original="",  # what the budget is relative to; "": the first model of this one's line
        budget_every=20, budget_images=200,  # steps between measurements, validation images of each set
        budget_rate=6.0,  # how fast the weight of forgetting follows
        token_bank=0, noise_bank=0,  # views of an image, noise images, whose codes are computed once; 0: none
        saliency=1.0,  # share of the weights, with the largest forget gradient, that may change; 1: all
        saliency_reset=False,  # start from fresh values of these weights
        adapter="", adapter_rank=8,  # train beside the weights: lora or norms; "": the weights themselves
        steps=300,
        batch_size=64,  # of retain and of forget images each
        learning_rate=7e-3,
        warmup_steps=40,
        schedule="cosine",
        weight_decay=0.1,
        optimizer="muon",  # or adamw
        beta1=0.9, beta2=0.99,
        clip_norm=3.0,
        ema_decay=0.0,
        accumulate=1,
        checkpoint_every=100,
        log_every=20,
    ))

    config.evaluate = ml_collections.ConfigDict(dict(  # l2l_jax.evals.config.EvaluationConfig
        tasks=("centre_8",),  # 8/16 of the side missing; also left_8, …, border_4 (4/32 on every side)
        batch_size=256,  # images per compiled call
        picture_per_class=2,  # images of each class in the picture
        features="classifier",  # a small one, trained on the spot; none: psnr and mse only
        write_images=False,  # originals and restorations as PNG in evaluation/images
        networks=(),  # published ones, where their files are
        inception="", resnet50="", clip="",  # their files; empty: looked for in the folder of weights
        resize="clean-fid",  # for inception; or pytorch-fid
        network_batch_size=32,  # images per compiled call of a network
    ))

    config.audit = ml_collections.ConfigDict(dict(  # l2l_jax.audit.config.AuditConfig
        enabled=True,  # attack the unlearned model afterwards: about five minutes more on two CPU cores
        attacks=("retain_tuning", "relearning", "fresh_decoder", "linear_probe", "membership"),  # and views
        retrained="shipped",  # the twin that never saw 5 to 9; or a folder, train, or empty
        steps=400,  # of tuning on retain images
        decoder_steps=300,  # of fresh decoders
        batch_size=64, learning_rate=2e-3,  # of both
        shots=(5, 25, 100),  # forget images of relearning
        shot_steps=50, shot_learning_rate=1e-3,
        seeds=1,  # repetitions of what is trained
        pixel_change=8.0,  # of views: 255ths of the range
    ))
    if variant == "encoder":
        config.unlearn.update(
            method="encoder",
            alpha=0.25,
            budget_every=30,
            optimizer="adamw",
            steps=500,
            batch_size=32,
            learning_rate=4e-3,
            warmup_steps=20,
            weight_decay=0.0,
            ema_decay=0.99,
        )
    elif variant:
        raise UserError(f"configs/digits_vqgan.py has the variant encoder, and none called {variant!r}.")
    return config
