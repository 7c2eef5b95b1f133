"""The published configs: their settings, and end-to-end runs of their small variants."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data import make_local
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from l2l_jax.weights.saved_models import save_model
from tests.test_main import run
from tests.train.families import params_of

NAMES = ("vqgan", "mae", "diffusion")
SMALLER = {
    "vqgan": {f"model.{name}": 2 for name in ("depth", "decoder_depth", "decoding_steps")},
    "diffusion": {"model.sampling_steps": 2, "model.channel_mults": (1,), "model.attn_res": ()},
}
SMALLER["vqgan"] |= {"model.scan": True, "pretrain.tokenizer.steps": 6}
for fields in SMALLER.values():
    fields["pretrain.model.steps"] = 6
"""Fewer steps, and models that compile faster; tests/models covers all features of the configs' models."""


def raw_config(name, variant=""):
    return read_config(f"{name}:{variant}")


def test_published_settings():
    vqgan, diffusion = (parse_config(raw_config(name)) for name in ("vqgan", "diffusion"))
    assert (vqgan.family, vqgan.model.image_size, vqgan.model.value_range) == ("mage", 256, (0, 1))
    assert (vqgan.model.depth, vqgan.model.width) == (12, 768)
    assert (vqgan.data.crop, vqgan.data.crop_scale, vqgan.data.flip) == ("random", (0.2, 1.0), True)
    assert vqgan.data.proxy_crop_scale == (0.2, 0.5)
    data = vqgan.data
    assert (data.source, data.train_per_class, data.test_per_class) == ("imagenet2012", 120, 50)
    cfg = vqgan.unlearn
    assert (cfg.beta1, cfg.beta2, cfg.weight_decay, cfg.clip_norm) == (0.9, 0.95, 0.05, 3.0)
    assert cfg.batch_size == 32 * 4 and cfg.learning_rate == pytest.approx(1e-4 * cfg.batch_size / 256)
    epoch = 120 * 100 / cfg.batch_size
    assert cfg.steps == math.ceil(6 * epoch) and cfg.warmup_steps == round(5 * epoch)
    assert cfg.alpha == 0.25 and cfg.schedule == "cosine"

    assert (diffusion.family, diffusion.model.image_size) == ("palette", 256)
    assert diffusion.model.value_range == (-1, 1) and diffusion.data.crop == "resize"
    data = diffusion.data
    assert (data.source, data.train_per_class, data.test_per_class) == ("places365_small", 5000, 100)
    cfg = diffusion.unlearn
    assert (cfg.weight_decay, cfg.ema_decay, cfg.learning_rate) == (0, 0.9999, 5e-5)
    assert cfg.batch_size == 12 * 8 and cfg.steps == 2 * 5000 * 50 // cfg.batch_size
    assert cfg.schedule == "constant" and cfg.clip_norm == 0


@pytest.mark.parametrize("name", NAMES)
def test_undo_settings_of_small_configs_are_proportional(name):
    """A tenth of the pretraining steps at twice the learning rate; held-out images for the budget."""
    plain, undo = (parse_config(raw_config(name, variant)) for variant in ("", "undo"))
    small = parse_config(raw_config("fashion_mae")).unlearn
    cfg, pretrain = undo.unlearn, plain.pretrain["model"]
    assert (cfg.method, cfg.optimizer, cfg.beta2) == (small.method, small.optimizer, small.beta2)
    assert cfg.options == small.options and cfg.cycles[1] == 2 * cfg.cycles[0]
    assert (cfg.steps * 10, cfg.learning_rate) == (pretrain.steps, 2 * pretrain.learning_rate)
    assert cfg.retain_budget and undo.data.validation_fraction and cfg.batch_size == plain.unlearn.batch_size
    assert undo.model.inpaint_passes <= 50  # because the budget is measured often


@pytest.mark.parametrize("name", NAMES)
def test_small_variants_are_valid(name):
    small = parse_config(raw_config(name, "runlocal"))
    assert small.family == parse_config(raw_config(name)).family and small.data.source == "folder"


def test_small_variant_without_images_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = parse_config(raw_config("mae", "runlocal"))
    with pytest.raises(UserError, match="data/local does not exist.*l2l_jax.data.make_local` makes it"):
        open_source(small.data, "train", small.model.image_size)


def test_make_local_images(tmp_path, run_here):
    """The script reports its output, and does not overwrite existing files."""
    flags = [f"--output={tmp_path / 'new'}", "--train=3"]
    code, output, _ = run_here(make_local.main, *flags, "--test=2")
    assert code == 0 and "20 images in" in output
    files = sorted(str(path.relative_to(tmp_path / "new")) for path in tmp_path.rglob("*.*"))
    assert len(files) == 4 * 5 and "train/temple/0002.jpg" in files and "val/digit_1/0001.png" in files
    sizes = {Image.open(path).size for path in tmp_path.glob("new/*/temple/*")}
    assert len(sizes) > 1  # so that cropping has an effect
    assert {Image.open(path).size for path in tmp_path.glob("new/*/digit_0/*")} == {(8, 8)}
    code, _, errors = run_here(make_local.main, *flags, "--test=1")
    assert code == 1 and re.match(r"Error: .*new exists\. Choose another --output", errors)
    code, _, errors = run_here(make_local.main, *flags, "--test=no")
    assert code == 1 and "invalid int value: 'no'" in errors


def random_model(name, folder):
    config = parse_config(override(raw_config(name, "runlocal"), SMALLER[name]))
    save_model(folder, params_of(config.model), {**config.describe("family", "model"), "origin": "random"})
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("name", SMALLER)
def test_small_variants_run_end_to_end(name, pretrained, tmp_path):
    """In every run, test_main.py runs the MAE variant, and models/ trains every phase of all families."""
    make_local.make(tmp_path / "pictures", {"train": 20, "val": 10})
    given = random_model(name, tmp_path / "given") if pretrained else ""
    flags = [f"--config.{field}={value}" for field, value in SMALLER[name].items()]
    flags += [f"--config.data.path={tmp_path / 'pictures'}", f"--config.model.pretrained={given}"]
    flags += ["--config.unlearn.steps=5", "--config.unlearn.warmup_steps=2"]
    flags += [f"--workdir={tmp_path}", "--config.evaluate.picture_per_class=1"]
    code, _, errors = run(f"--config=configs/{name}.py:runlocal", *flags)
    assert code == 0, errors
    report = json.loads((tmp_path / "report/metrics.json").read_text())
    for model in ("original", "unlearned"):
        for split in ("retain", "forget"):
            assert {"psnr", "ssim", "mse", "classifier_distance", "accuracy"} <= set(report[model][split])
            assert np.isfinite(list(report[model][split].values())).all()
