"""Opening of feature networks from files, and batched execution."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.features import clip, networks
from l2l_jax.evals.features.networks import BatchedNetwork, open_networks
from l2l_jax.weights import checkpoints
from tests.reference_arrays import Case

TINY = clip.TowerConfig(32, 8, 32, 2, 4, 64, 16, "gelu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("L2L_JAX_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def tiny_clip(tmp_path, monkeypatch):
    """A file with a small CLIP tower that is registered as published."""
    monkeypatch.setattr(clip, "PUBLISHED", {"tiny": TINY})
    path = tmp_path / "clip.safetensors"
    safetensors.numpy.save_file(Case("clip_tiny").state_dict(), path)
    return path


def images(count, height=40, width=56):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_networks_without_files_are_reported(folder):
    available, missing = open_networks(EvaluationConfig(networks=("inception", "resnet50", "clip")))
    assert available == {}
    assert missing.keys() == {"fid", "kid", "inception_score", "scene_score", "clip_cosine"}
    for name, file, command in (
        ("fid", "pt_inception-2015-12-05-6726825d.pth", "fetch inception"),
        ("scene_score", "resnet50_places365.pth.tar", "fetch resnet50-places365"),
        ("clip_cosine", "clip_vit_h_14_laion2b.bin", "fetch clip-vit-h-14"),
    ):
        assert missing[name].startswith(f"not available: {file}, published at https://")
        assert command in missing[name] and str(folder) in missing[name]
    assert list(folder.iterdir()) == []


def test_network_files_are_opened_only_if_requested(folder, tiny_clip):
    assert open_networks(EvaluationConfig(clip=str(tiny_clip))) == ({}, {})
    with pytest.raises(UserError, match="config.evaluate.clip=nowhere.pth does not exist"):
        open_networks(EvaluationConfig(networks=("clip",), clip="nowhere.pth"))
    config = EvaluationConfig(networks=("inception",), inception=str(tiny_clip))
    with pytest.raises(UserError, match=r"clip.safetensors: .*do not match.*Missing keys: Conv2d_1a"):
        open_networks(config)


def test_clip_preprocessing_matches_pillow(folder, tiny_clip):
    config = EvaluationConfig(networks=("clip",), clip=str(tiny_clip), network_batch_size=4)
    network = open_networks(config)[0]["clip"]
    assert network.name == "CLIP tiny"
    digest = hashlib.sha256(tiny_clip.read_bytes()).hexdigest()
    assert network.weights["file"] == "clip.safetensors" and network.weights["sha256"] == digest
    assert (network.weights["licence"], network.weights["published"]) == ("MIT", False)
    json.dumps(network.weights)
    # The shorter side is resized to 32 by Pillow, then center-cropped.
    originals = images(3)
    small = [Image.fromarray(image).resize((44, 32), Image.Resampling.BICUBIC) for image in originals]
    normalized = np.stack([np.asarray(image)[:, 6:38] for image in small]) / 255
    normalized = (normalized - np.array(clip.MEAN)[None, None, None]) / np.array(clip.STD)[None, None, None]
    source = checkpoints.open_checkpoint(tiny_clip)
    params = networks.OPENERS["clip"](source.state_dict, config)[1]
    expected = jax.jit(clip.Tower(TINY).apply)({"params": params}, normalized.astype(np.float32))
    np.testing.assert_allclose(network(originals)["features"], expected, atol=2e-3)


@pytest.mark.parametrize(("resize", "white"), [("clean-fid", 127 / 128), ("pytorch-fid", 1.0)])
def test_pixel_range_of_inception(resize, white):
    # clean-fid subtracts 128 and divides by 128, pytorch-fid computes 2x - 1 of x in [0, 1].
    for value, expected in ((0, -1.0), (255, white)):
        pixels = networks.inception_pixels(jnp.full((1, 20, 30, 3), value, jnp.uint8), resize)
        assert pixels.shape == (1, 299, 299, 3)
        np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_cpu_computes_several_batches_in_parallel(monkeypatch):
    """The images keep their order, and calls of few images share one program."""
    monkeypatch.setattr(networks, "threads", lambda most: 3)
    traced, originals = [], images(11, 5, 4)
    network = BatchedNetwork(
        "mean", {}, np.float32(2), lambda p, x: traced.append(x.shape) or {"features": p * x.mean((1, 2))}, 16
    )
    expected = 2 * originals.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(network(originals)["features"], expected, rtol=1e-5)
    assert traced == [(networks.PER_THREAD, 5, 4, 3)]


@pytest.mark.parametrize("shown", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 1), np.uint8)])
def test_invalid_images_are_rejected(shown):
    with pytest.raises(ValueError, match="uint8 images"):
        BatchedNetwork("", {}, (), lambda params, x: {"features": x}, 4)(shown)
