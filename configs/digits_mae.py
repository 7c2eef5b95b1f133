"""A masked autoencoder forgets the handwritten digits 5 to 9 and keeps 0 to 4.

    python -m l2l_jax.main --config=configs/digits_mae.py
    python -m l2l_jax.main --config=configs/digits_mae.py:encoder

The embedded default: real images that come with scikit-learn, and a small MAE that comes with this
package; nothing to download. The run keeps the encoder's weights, mixes the decoder's with fresh ones and
rebuilds the two within a retain budget of 1.15 (the method `undo`), restores the test images with the
centre square of half the side missing, attacks the result, and writes runs/digits_mae/report/report.html.
The variant `encoder` is the paper's method, which leaves the decoder as it is; the attacks bring back
what it hid: docs/concepts/methods.md.

Hardware: two CPU cores, 1.6 GiB of memory.
Expected figures on test images, medians of seeds 0, 1 and 2: accuracy of the original model 0.96 (retain)
and 0.93 (forget); after unlearning 0.94 and 0.26, the error in the mask 1.17 times the original's on
retain images and 8 times on forget images. With `encoder`, seed 0: 0.94 and 0.28, 1.25 times and 10
times.

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

    config.model = ml_collections.ConfigDict(
        dict(  # l2l_jax.models.mae.model.MAE
            family="mae",
            pretrained="digits_mae",  # a shipped or saved model, or a checkpoint file; "": pretrain one
            image_size=16,  # pixels; the 8×8 scans are enlarged
            patch_size=4,  # pixels: 4×4 patches
            width=96,
            depth=4,
            num_heads=4,  # encoder
            decoder_width=64,
            decoder_depth=2,
            decoder_num_heads=4,
            mask_ratio=0.4,  # share of the patches hidden by T
            norm_pix_loss=False,  # compare raw pixels: the model is meant for restoration
            pixel_mean=(0.3, 0.3, 0.3),
            pixel_std=(0.37, 0.37, 0.37),  # of the training images
            dtype="float32",  # or bfloat16
            remat=False,  # keep less for the backward pass and compute it again
            scan=False,  # loop over one compiled transformer block: compiles faster, on CPU runs slower
        )
    )

    config.data = ml_collections.ConfigDict(
        dict(  # l2l_jax.data.config.DataConfig
            source="digits",  # or folder, csv, or a data set of TensorFlow Datasets: see docs/guides
            path="",  # where the source's files are
            forget=(5, 6, 7, 8, 9),  # classes
            retain=(0, 1, 2, 3, 4),  # or rest
            proxy=(),  # what replaces the retain images while unlearning; (): nothing
            train_per_class=0,
            test_per_class=0,  # images; 0: all
            general=(),
            general_images=0,  # classes of neither set that are tested, too; or rest
            retain_ratio=1.0,  # share of the retain images that may be used
            retain_images="real",  # or generated: the original model makes them, from proxies or noise
            generated_count=0,  # how many; 0: one for each proxy or image to forget
            test_fraction=0.2,  # held out where the source has no test images; the digits have
            validation_fraction=0.15,  # of the training images: kept for choosing settings
            crop="resize",
            crop_scale=(0.2, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            flip=False,  # of files
            proxy_crop_scale=None,  # of proxies; None: the same
            workers=0,  # processes that read and decode; 0: threads
            max_bad_fraction=0.01,  # of a set's images that may be impossible to decode
        )
    )

    config.pretrain = ml_collections.ConfigDict()
    config.pretrain.model = ml_collections.ConfigDict(
        dict(  # l2l_jax.train.optim.TrainingConfig
            steps=2500,
            batch_size=64,
            learning_rate=4e-3,  # peak
            warmup_steps=100,
            schedule="cosine",  # after it; or constant
            weight_decay=0.1,  # not on biases and norms
            optimizer="adamw",  # or muon
            beta1=0.9,
            beta2=0.99,  # AdamW
            clip_norm=3.0,  # 0: no clipping
            ema_decay=0.0,  # moving average of the parameters; 0: off
            accumulate=1,  # parts of a batch, for gradient accumulation
            checkpoint_every=500,  # steps
            log_every=20,  # steps
        )
    )

    config.unlearn = ml_collections.ConfigDict(
        dict(  # l2l_jax.config.UnlearningConfig
            method="undo",  # or encoder, max_loss, noisy_label, retain_label, random_encoder,
            # epsilon, whole, relearn_aware: docs/concepts/methods.md
            alpha=0.07,  # weight of forgetting
            epsilon_ratio=0.5,  # of epsilon, in place of alpha: 0 forgets most, 1 costs least
            noise="normal",  # the teacher's noise images: normal, uniform or constant
            target="noise",  # of undo and relearn_aware: what forget images become: noise, blur or mean
            target_blur=0.1,  # of blur: standard deviation, as a share of the side
            perturb=0.8, perturb_encoder=0.0,  # of undo: shares of fresh weights in decoder and encoder
            feature_weight=1.5,  # of undo: weight of the paper's forget loss on the encoder's features
            forget_every=4,  # of undo: one in so many forget images of a batch is used
            distill=0.5,  # of undo: weight of the original's predictions against the truth, on retain images
            attack_steps=1,
            attack_rate=1e-3,  # of relearn_aware: the simulated attacker
            retain_budget=1.15,  # greatest retain error, times the original's; 0: fixed alpha; docs/guides
            budget_original="",  # what the budget is relative to; "": the first model of this one's line
            budget_every=20,
            budget_images=200,  # steps between measurements, validation images of each set
            budget_rate=6.0,  # how fast the weight of forgetting follows
            token_bank=0,  # views of an image whose codes are computed once; 0: none
            noise_bank=0,  # noise images whose codes are computed once; 0: none
            saliency=1.0,  # share of the weights, with the largest forget gradient, that may change; 1: all
            saliency_reset=False,  # start from fresh values of these weights
            adapter="",  # or lora, norms: train beside the weights
            adapter_rank=8,  # of lora
            steps=520,
            batch_size=64,  # of retain and of forget images each
            learning_rate=7e-3,
            warmup_steps=50,
            schedule="cosine",
            weight_decay=0.1,
            optimizer="muon",  # or adamw
            beta1=0.9,
            beta2=0.99,
            clip_norm=3.0,
            ema_decay=0.0,
            accumulate=1,
            checkpoint_every=200,
            log_every=20,
        )
    )

    config.evaluate = ml_collections.ConfigDict(
        dict(  # l2l_jax.evals.config.EvaluationConfig
            tasks=("centre_8",),  # 8/16 of the side missing; also left_8, …, border_6 (6/32), random_75 (%)
            batch_size=256,  # images per compiled call
            picture_per_class=2,  # images of each class in the picture
            features="classifier",  # a small one, trained on the spot; none: psnr and mse only
            write_images=False,  # originals and restorations as PNG in evaluation/images
            networks=(),  # published ones, where their files are
            inception="",
            resnet50="",
            clip="",  # their files; empty: looked for in the folder of weights
            resize="clean-fid",  # for inception; or pytorch-fid
            network_batch_size=32,  # images per compiled call of a network
        )
    )
    config.audit = ml_collections.ConfigDict(
        dict(  # l2l_jax.audit.config.AuditConfig
            enabled=True,  # attack the unlearned model afterwards: about two minutes more on two CPU cores
            attacks=("retain_tuning", "relearning", "fresh_decoder", "linear_probe", "membership"),
            # and views
            retrained="shipped",  # the twin that never saw 5 to 9; or a folder, train, or empty
            steps=400,  # of tuning on retain images
            decoder_steps=300,  # of fresh decoders
            batch_size=64,
            learning_rate=2e-3,  # of both
            shots=(5, 25, 100),  # forget images of relearning
            shot_steps=50,
            shot_learning_rate=1e-3,
            seeds=1,  # repetitions of what is trained
            pixel_change=8.0,  # of views: 255ths of the range
        )
    )
    if variant == "encoder":
        config.unlearn.update(
            method="encoder",
            alpha=0.2,
            retain_budget=1.25,
            optimizer="adamw",
            steps=800,
            learning_rate=4e-3,
            warmup_steps=20,
            weight_decay=0.0,
            ema_decay=0.99,
        )
    elif variant:
        raise UserError(f"configs/digits_mae.py has the variant encoder, and none called {variant!r}.")
    return config
