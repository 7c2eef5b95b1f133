"""Latent diffusion's T, inpainting and prompts, compared with their definitions."""

import dataclasses

import jax
import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.models.layers import apply
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

MODEL = MODELS["latent_diffusion"]
SDXL = MODEL.replace(
    unet=dataclasses.replace(MODEL.unet, added_time_dim=2, added_dim=17),
    schedule=dataclasses.replace(MODEL.schedule, prediction_type="v_prediction"),
)
MASK = np.zeros((8, 8), bool)
MASK[2:6, 3:8] = True
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def params():
    return params_of(SDXL)  # its encoder has an additional embedding, which MODEL does not use


@pytest.fixture(scope="module")
def images():
    (batch,) = images_of("latent_diffusion", 1, 4)
    return batch["retain"]


@jax.jit
def moments(params, images):
    return apply(MODEL.autoencoder, params["vae"], images, method="encode")


def test_corruption_by_hand(params, images):
    """Latents are sampled, scaled and shifted; channels have diffusers' order; the masked image is gray."""
    vae = dataclasses.replace(SDXL.vae, scaling_factor=0.5, shift_factor=0.25)
    model = SDXL.replace(vae=vae)
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((3, 4, 4, 4, 4)).astype(np.float32)
    t, numbers = np.array([0, 10, 500, 999]), np.array([1, 0, 0, 1])
    draw = dict(timesteps=t, noise=normal[0], posterior=np.stack(normal[1:], axis=1), prompt=numbers)

    @jax.jit
    def corrupt(params, images):
        return model.corrupt_with(params, model.encode_images(params, images, MASK[None, ..., None]), draw)

    corrupted = corrupt(params, images)
    small = MASK[::2, ::2]
    latents = []
    for x, noise in ((images, normal[1]), (np.where(MASK[..., None], 0, images), normal[2])):
        mean, log_variance = map(np.asarray, moments(params, x))
        latents.append(0.5 * (mean + np.exp(log_variance / 2) * noise - 0.25))
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t][:, None, None, None]
    noisy = np.sqrt(alphas) * latents[0] + np.sqrt(1 - alphas) * normal[0]
    np.testing.assert_allclose(corrupted["inputs"][..., :4], noisy, atol=1e-5)
    np.testing.assert_array_equal(corrupted["inputs"][..., 4], np.broadcast_to(small, (4, 4, 4)))
    np.testing.assert_allclose(corrupted["inputs"][..., 5:], latents[1], atol=1e-5)
    for name, given in (("words", corrupted["prompt"]), ("pooled", corrupted["added"]["pooled"])):
        np.testing.assert_array_equal(given, params["prompts"][name][numbers])
    np.testing.assert_array_equal(corrupted["added"]["sizes"], [[8, 8, 0, 0, 8, 8]] * 4)
    v = np.sqrt(alphas) * normal[0] - np.sqrt(1 - alphas) * latents[0]
    predicted = rng.standard_normal(v.shape)
    losses = model.prediction_loss(predicted, images, corrupted)
    np.testing.assert_allclose(losses, np.square(predicted - v).mean((1, 2, 3)), rtol=1e-4)


def test_corruption_of_images_and_codes_is_equal_for_one_key(params, images):
    """All but the latents of the images; for codes, `precompute` runs the VAE and samples masks."""
    corrupt = jax.jit(SDXL.corrupt)
    corrupted, other = corrupt(params, images, KEY), corrupt(params, -images, KEY)
    for name in ("timesteps", "noise", "mask", "prompt", "added"):
        jax.tree.map(np.testing.assert_array_equal, corrupted[name], other[name])
    codes = jax.jit(SDXL.precompute)(params, images, KEY)
    assert codes.shape == (4, *SDXL.code.shape) and codes.dtype == SDXL.code.dtype
    same = corrupt({"prompts": params["prompts"]}, codes, KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), corrupted, same)
    assert len(np.unique(corrupted["timesteps"])) == 4 and len(np.unique(corrupted["mask"], axis=0)) > 1


inpaint = jax.jit(lambda model, params, images: model.inpaint(params, images, MASK, KEY), static_argnums=0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [soak(None), 3.0])
def test_inpainting_by_hand(params, images, scale):
    """Two DDIM steps (Song et al. 2021, equation 12) with guidance (Ho and Salimans 2022), decoded.

    In every run, weights/test_pipelines.py compares reconstructions without guidance with diffusers.
    """
    model = MODEL.replace(prompt="a photo", guidance_scale=scale)
    result = inpaint(model, params, images)
    np.testing.assert_array_equal(result[:, ~MASK], images[:, ~MASK])
    hidden = np.where(MASK[..., None], np.float32(np.nan), images)
    np.testing.assert_array_equal(result, inpaint(model, params, hidden))
    noise, posterior = (np.asarray(jax.random.normal(k, (4, 4, 4, 4))) for k in jax.random.split(KEY))
    mean, log_variance = moments(params, np.where(MASK[..., None], 0, images))
    masked = mean + np.exp(np.asarray(log_variance) / 2) * posterior
    small = np.broadcast_to(MASK[::2, ::2, None], (4, 4, 4, 1)).astype(np.float32)
    words = params["prompts"]["words"]
    alphas, latents = model.schedule.alphas(), noise
    for t, before in ((501, 1), (1, -1)):
        inputs = np.concatenate([latents, small, masked], -1), np.full(4, t)
        plain, prompted = (predict(params, *inputs, np.repeat(words[k : k + 1], 4, axis=0)) for k in (0, 1))
        e = prompted if scale is None else plain + scale * (prompted - plain)
        clean = (latents - np.sqrt(1 - alphas[t]) * e) / np.sqrt(alphas[t])
        then = alphas[max(before, 0)]
        latents = np.sqrt(then) * clean + np.sqrt(1 - then) * e
    np.testing.assert_allclose(result[:, MASK], np.clip(decode(params, latents), -1, 1)[:, MASK], atol=1e-4)
    assert MODEL.alternatives() == {"prompt a photo": MODEL.replace(prompt="a photo")}


@jax.jit
def predict(params, inputs, timesteps, prompt):
    return MODEL.predict(params, {"inputs": inputs, "timesteps": timesteps, "prompt": prompt})


@jax.jit
def decode(params, latents):
    return apply(MODEL.autoencoder, params["vae"], latents, method="decode")


@pytest.mark.slow
def test_samplers_of_attacks(params, images):
    """A closer ring fits better; a hint keeps the image; more noise changes it."""
    grown = np.zeros((8, 8), bool)
    grown[1:7, 2:8] = True
    model = MODEL.replace(value_range=(-99.0, 99.0))  # nothing is clipped
    sample = jax.jit(lambda params, x: model.sample(params, x, MASK, KEY))
    drawn, misfit = sample(params, images)
    ring = grown & ~MASK
    np.testing.assert_array_equal(drawn, sample(params, np.where(grown[..., None], 0, images))[0])
    np.testing.assert_allclose(misfit, np.square(drawn - images)[:, ring].mean((1, 2)), rtol=1e-3)
    np.testing.assert_array_equal(drawn[:, ~grown], images[:, ~grown])
    denoise = jax.jit(lambda params, x, scale: MODEL.denoise(params, x, MASK, KEY, 1.0, scale))
    calm, wild = (denoise(params, images, np.float32(scale)) for scale in (0, 2))
    assert np.abs(calm - wild)[:, MASK].max() > 1e-3
    np.testing.assert_array_equal(wild[:, ~MASK], images[:, ~MASK])
    norms = jax.jit(lambda params, x: MODEL.noise_norm(params, x, MASK, KEY))(params, images)
    assert norms.shape == (4,) and np.all(norms > 0)


def test_vae_is_trained_first(params, images):
    """Its loss is the squared error of the reconstruction plus the divergence from a normal distribution."""
    stage, second = MODEL.replace(kl_weight=0.5).pretraining_stages()
    assert (stage.name, stage.trained, second.trained) == ("vae", ("vae",), ("encoder", "decoder"))
    inputs = jax.jit(stage.prepare)({}, images, KEY)
    losses = jax.jit(stage.loss)(params, inputs)
    mean, log_variance = (np.asarray(x, float) for x in moments(params, images))
    sample = mean + np.exp(log_variance / 2) * np.asarray(jax.random.normal(KEY, mean.shape))
    decoded = decode(params, sample.astype(np.float32))
    divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    expected = np.square(decoded - images).mean((1, 2, 3)) + 0.5 * divergence.mean((1, 2, 3))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def config(**model):
    given = dict(family="latent_diffusion", **{"image_size": 64, **model})
    data = dict(source="folder", forget=("bob", "eve"), retain=("rest",))
    return parse_config(dict(model=given, data=data, pretrain={n: {"steps": 1} for n in ("vae", "model")}))


def test_prompt_for_every_class():
    model = config(prompts=("", "a photo of {class}"), unet={"heads": (4, 4, 4, 4)}).model
    assert model.prompts == ("", "a photo of bob", "a photo of eve")
    assert model.unet.heads[0] == 4 and model.unet.block_out_channels[0] == 320


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(unet={"in_channels": 4}), "takes 4 channels; expected an inpainting model, with 9"),
        (dict(image_size=100), "image_size 100 is not a multiple of 64"),
        (dict(prompt="a cat"), "prompt 'a cat' is not among the prompts ''"),
        (
            dict(prompts=("a cat",), prompt="a cat", guidance_scale=2.0),
            "guidance_scale needs the empty prompt",
        ),
        (dict(scan=True), "scan needs several transformer blocks in a place; this U-Net has one at most"),
        (dict(sample_steps=2000), "sampling takes 1 to 1000 steps, not 2000"),
        (dict(unet={"head": 3}), "config.model.unet.head does not exist"),
    ],
)
def test_invalid_models(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        config(**fields)
