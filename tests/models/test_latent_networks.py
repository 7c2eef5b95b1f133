"""The networks of latent diffusion compared with arrays of diffusers, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.latent_diffusion.diffusers import TABLE
from l2l_jax.models.latent_diffusion.scheduler import Schedule
from l2l_jax.models.latent_diffusion.text import TABLE as TEXT_TABLE
from l2l_jax.models.latent_diffusion.text import TextEncoder, token_ids
from l2l_jax.models.latent_diffusion.unet import Decoder, Encoder, UNetSizes
from l2l_jax.models.latent_diffusion.vae import AutoencoderKL, VAESizes
from tests.fixtures.pipelines import WORDS, write_tokenizer
from tests.matrix import soak
from tests.reference_arrays import Case, fill, nhwc

pytestmark = pytest.mark.usefixtures("one_device")


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def unet_inputs(sizes):
    added = {"pooled": draw(4, 2, 6), "sizes": np.array([[64, 48, 0, 3, 32, 32]] * 2)}
    inputs = nhwc(draw(1, 2, 9, 8, 8)), jnp.array([1, 981]), draw(2, 2, 5, sizes.cross_attention_dim)
    return (*inputs, added) if sizes.added_dim else inputs


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def unet_shapes(sizes, *inputs):
    features, encoder = jax.eval_shape(Encoder(sizes).init_with_output, jax.random.key(0), *inputs)
    return {"encoder": encoder["params"], "decoder": shapes(Decoder(sizes), features, inputs[2])}


def close(found, expected, tolerance):
    expected = nhwc(expected) if expected.ndim == 4 else expected
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("style", ["sd15", soak("sd2"), "sdxl"])
def test_unet_block_by_block(style):
    """In every run, weights/test_pipelines.py compares images of all three."""
    case = Case("latent_unet")
    sizes, keys = UNetSizes.from_json(case.config[style]), case.description["keys"][style]
    inputs, keep = unet_inputs(sizes), dict(capture_intermediates=True)
    state = {f"unet.{key}": fill(f"{style}:{key}", shape) for key, shape, _ in keys}
    params = mapping.to_flax(TABLE, state, unet_shapes(sizes, *inputs))
    jax.tree.map(np.testing.assert_array_equal, mapping.to_torch(TABLE, params), state)

    @jax.jit
    def both(params):
        features, encoder = Encoder(sizes).apply({"params": params["encoder"]}, *inputs, **keep)
        out, decoder = Decoder(sizes).apply({"params": params["decoder"]}, features, inputs[2], **keep)
        return out, {"encoder": encoder["intermediates"], "decoder": decoder["intermediates"]}, features

    out, inner, features = both(params)

    def inside(*path):
        value = inner
        for name in path:
            value = value[name]
        return value["__call__"][0]

    close(inside("encoder", "conv_in"), case[f"{style}/conv_in"], 1e-6)
    close(inside("encoder", "time_embedding"), case[f"{style}/time_embedding"], 1e-6)
    for i in (0, 1):
        block = f"down_blocks_{i}"
        close(inside("encoder", f"{block}_resnets_0"), case[f"{style}/down_{i}_resnets_0"], 2e-6)
        if sizes.attends[i]:
            attention = ("encoder", f"{block}_attentions_0")
            attn1 = case[f"{style}/down_{i}_attn1"]
            close(inside(*attention, "transformer_blocks_0", "attn1"), attn1, 1e-5)
            close(inside(*attention), case[f"{style}/down_{i}_attentions_0"], 1e-5)
    close(features.skips[2], case[f"{style}/down_0"], 1e-5)
    close(features.skips[3], case[f"{style}/down_1"], 1e-5)
    close(features.hidden, case[f"{style}/mid"], 1e-5)
    close(inside("decoder", "up_blocks_0_upsample"), case[f"{style}/up_0"], 1e-5)
    close(out, case[f"{style}/out"], 2e-5)


SDXL = dict(block_out_channels=(320, 640, 1280), attends=(False, True, True), layers_per_block=(2,) * 3)
SDXL |= dict(transformer_layers=(0, 2, 10), heads=(5, 10, 20), cross_attention_dim=2048)
SDXL |= dict(linear_projection=True, added_time_dim=256, added_dim=2816)


@pytest.mark.parametrize(("fields", "millions"), [({}, 859.54), soak(SDXL, 2567.48)])
def test_published_sizes(fields, millions):
    """Parameter counts of the U-Nets of Stable Diffusion 1.5 and XL match diffusers; blocks: above."""
    sizes = UNetSizes(**fields)
    inputs = jnp.zeros((1, 8, 8, 9)), jnp.zeros(1), jnp.zeros((1, 1, sizes.cross_attention_dim))
    added = {"pooled": jnp.zeros((1, 1280)), "sizes": jnp.zeros((1, 6))}
    shapes = unet_shapes(sizes, *inputs, added)
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_autoencoder():
    case = Case("latent_vae")
    module, images = AutoencoderKL(VAESizes.from_json(case.config)), nhwc(np.tanh(draw(5, 2, 3, 16, 16)))
    state = {f"vae.{key}": fill(key, shape) for key, shape, _ in case.description["keys"]}
    params = mapping.to_flax(TABLE, state, {"vae": shapes(module, images)})["vae"]

    @jax.jit
    def both(params):
        variables, options = {"params": params}, dict(capture_intermediates=True)
        moments, inner = module.apply(variables, images, method="encode", **options)
        decoded, more = module.apply(variables, nhwc(draw(6, 2, 4, 8, 8)), method="decode", **options)
        return moments, decoded, inner["intermediates"], more["intermediates"]

    (mean, log_variance), decoded, encoder, decoder = both(params)
    for name, inner in (("encoder", encoder), ("decoder", decoder)):
        close(inner[name]["conv_in"]["__call__"][0], case[f"{name}/conv_in"], 1e-6)
        close(inner[name]["mid_block_resnets_1"]["__call__"][0], case[f"{name}/mid_block"], 1e-5)
    close(mean, case["mean"], 1e-5)
    close(log_variance, case["log_variance"], 1e-5)
    close(decoded, case["decoded"], 1e-5)
    with pytest.raises(UserError, match="down_block_types AttnDownEncoderBlock2D is not supported"):
        VAESizes.from_json(case.config | {"down_block_types": ["AttnDownEncoderBlock2D"]})


@pytest.mark.parametrize("name", ["epsilon", "v", "zero_snr"])
def test_schedules_and_steps(name):
    case = Case("latent_scheduler")
    schedule = Schedule.from_json(case.config[name])
    np.testing.assert_allclose(schedule.alphas(), case[f"{name}/alphas"], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(schedule.timesteps(4), case[f"{name}/timesteps"])
    latents, noise, times = draw(7, 2, 3), draw(8, 2, 3), np.array([3, 999])
    close(schedule.add_noise(latents, noise, times), case[f"{name}/noisy"], 1e-5)
    expected = noise if name == "epsilon" else case[f"{name}/target"]
    close(schedule.target(latents, noise, times), expected, 1e-5)
    for i, timestep in enumerate(schedule.timesteps(4)):
        latents = schedule.step(draw(9 + i, 2, 3), latents, timestep, 4)
        close(latents, case[f"{name}/step_{i}"], 2e-5)
    with pytest.raises(ValueError, match="expected v_prediction"):
        Schedule.from_json({"rescale_betas_zero_snr": True})


SD15 = Case("latent_unet").config["sd15"]
UNSUPPORTED = [
    (SD15, {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types AttnDownBlock2D"),
    (SD15, {"mid_block_type": "UNetMidBlock2D"}, "mid_block_type UNetMidBlock2D is not supported"),
    (SD15, {"up_block_types": ["UpBlock2D"] * 2}, "do not mirror"),
    (SD15, {"class_embed_type": "projection"}, "class_embed_type projection"),
    (SD15, {"layers_per_block": [1, 2, 3]}, "expected 2 values"),
    ({}, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule squaredcos_cap_v2"),
    ({}, {"prediction_type": "sample"}, "prediction_type sample"),
]


@pytest.mark.parametrize("config, change, message", UNSUPPORTED)
def test_unsupported_unets_and_schedules_are_named(config, change, message):
    with pytest.raises(UserError, match=message):
        (UNetSizes if config else Schedule).from_json(config | change)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder(activation):
    case = Case("latent_clip")
    module = TextEncoder.from_json(case.config | {"hidden_act": activation}, projected=True)
    ids = np.array(case.description["tokens"])
    params = mapping.to_flax(TEXT_TABLE, case.state_dict(), shapes(module, ids))
    modules = module, module.clone(end=2)  # the oldest files, where the largest id ends a prompt
    features, oldest = jax.jit(lambda params: [m.apply({"params": params}, ids) for m in modules])(params)
    close(features.last, case[f"{activation}/last"], 1e-5)
    close(features.penultimate, case[f"{activation}/hidden_2"], 1e-5)
    close(features.pooled, case[f"{activation}/pooled"], 1e-5)
    close(oldest.pooled, case[f"{activation}/pooled"], 1e-5)


def test_tokens(tmp_path):
    pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path / "x", padding="!")
    ids = token_ids(["A Photo  of é", "photo of a photo of a photo of a photo of"], tmp_path / "x", 77)
    expected = ["<|startoftext|>", "a</w>", "photo</w>", "of</w>", "Ã", "©</w>", "<|endoftext|>", *"!!!!!"]
    assert [WORDS[i] for i in ids[0]] == expected
    assert ids.shape == (2, 12) and WORDS[ids[1, -1]] == "<|endoftext|>" and WORDS[ids[1, -2]] == "photo</w>"
    with pytest.raises(UserError, match="holds no tokenizer that can be read"):
        token_ids([""], tmp_path, 77)


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
def test_tokens_match_transformers(tmp_path, padding):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path / "x", padding)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "x")
    theirs.save_pretrained(tmp_path / "saved")  # only tokenizer.json
    texts = ["", "A  photo of bob's 42 cats!", "photo of a photo of a photo of a photo of", "\n caf\u00e9 "]
    expected = theirs(texts, padding="max_length", max_length=12, truncation=True).input_ids
    for name in ("x", "saved"):
        np.testing.assert_array_equal(token_ids(texts, tmp_path / name, 77), expected)
