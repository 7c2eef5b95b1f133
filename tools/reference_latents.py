"""Compute the reference arrays of latent diffusion with diffusers and transformers.

    python tools/reference_latents.py  # writes latent_*.json and latent_*.npz

Weights follow the rule in tests/reference/README.md. Arrays have PyTorch's axes, `[batch, channel, …]`.
"""

import json
import pathlib
import sys
import tempfile

import diffusers
import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).parent.parent
HERE = ROOT / "tests" / "reference"
sys.path.insert(0, str(ROOT))

from tests.fixtures.pipelines import write_pipeline  # noqa: E402
from tests.reference_arrays import fill  # noqa: E402

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SHARED = dict(in_channels=9, out_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=8)
SHARED |= dict(block_out_channels=[8, 16], down_block_types=[CROSS, PLAIN])
SHARED |= dict(up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
UNETS = {
    "sd15": SHARED | dict(cross_attention_dim=12, attention_head_dim=2),
    "sd2": SHARED | dict(cross_attention_dim=12, attention_head_dim=[1, 4], use_linear_projection=True),
    "sdxl": SHARED
    | dict(
        down_block_types=[PLAIN, CROSS],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=24,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        transformer_layers_per_block=[0, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
    ),
}
VAE = dict(
    block_out_channels=[8, 16],
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=16,
    scaling_factor=0.13,
)
CLIP = dict(
    vocab_size=100,
    hidden_size=12,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=12,
    projection_dim=6,
    bos_token_id=98,
    eos_token_id=99,
    pad_token_id=99,
)
SCHEDULERS = {
    "epsilon": dict(_class_name="PNDMScheduler", beta_schedule="scaled_linear", beta_start=0.00085)
    | dict(beta_end=0.012, set_alpha_to_one=False, steps_offset=1, clip_sample=False, skip_prk_steps=True),
    "v": dict(_class_name="DDIMScheduler", beta_schedule="scaled_linear", beta_start=0.00085)
    | dict(beta_end=0.012, prediction_type="v_prediction", timestep_spacing="linspace", clip_sample=True),
    "zero_snr": dict(_class_name="DDIMScheduler", beta_schedule="linear", prediction_type="v_prediction")
    | dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False),
}


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def filled(module: torch.nn.Module, prefix: str) -> list[list]:
    """Fill the module with the weights of the rule; return its keys, shapes and dtypes."""
    state = module.state_dict()
    keys = [[key, list(value.shape), str(value.dtype)] for key, value in state.items()]
    module.load_state_dict({key: torch.tensor(fill(prefix + key, shape)) for key, shape, _ in keys})
    module.eval()
    return keys


def record(arrays: dict, name: str):
    def hook(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        arrays[name] = output.detach().numpy()

    return hook


def save(name: str, arrays: dict, **description) -> None:
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    np.savez_compressed(HERE / f"latent_{name}.npz", **arrays)
    text = json.dumps({"versions": versions, **description})
    (HERE / f"latent_{name}.json").write_text(text + "\n")


def unets() -> None:
    arrays, keys = {}, {}
    for style, config in UNETS.items():
        unet = diffusers.UNet2DConditionModel.from_config(config)
        keys[style] = filled(unet, f"{style}:")
        places = {"conv_in": unet.conv_in, "time_embedding": unet.time_embedding, "mid": unet.mid_block}
        for i, (down, up) in enumerate(zip(unet.down_blocks, unet.up_blocks, strict=True)):
            places |= {f"down_{i}": down, f"up_{i}": up, f"down_{i}_resnets_0": down.resnets[0]}
            if hasattr(down, "attentions"):
                places[f"down_{i}_attentions_0"] = down.attentions[0]
                places[f"down_{i}_attn1"] = down.attentions[0].transformer_blocks[0].attn1
        for name, module in places.items():
            module.register_forward_hook(record(arrays, f"{style}/{name}"))
        added = {"text_embeds": draw(4, 2, 6), "time_ids": np.array([[64, 48, 0, 3, 32, 32]] * 2, np.float32)}
        with torch.no_grad():
            arrays[f"{style}/out"] = unet(
                torch.tensor(draw(1, 2, 9, 8, 8)),
                torch.tensor([1, 981]),
                torch.tensor(draw(2, 2, 5, config["cross_attention_dim"])),
                added_cond_kwargs={name: torch.tensor(value) for name, value in added.items()},
            ).sample.numpy()
    inputs = "draw(1, 2, 9, 8, 8), time steps [1, 981], draw(2, 2, 5, cross_attention_dim); "
    inputs += "SDXL: draw(4, 2, 6), sizes [64, 48, 0, 3, 32, 32]"
    save("unet", arrays, config=UNETS, keys=keys, inputs=inputs)


def vae() -> None:
    arrays, model = {}, diffusers.AutoencoderKL.from_config(VAE)
    keys = filled(model, "")
    for name in ("encoder", "decoder"):
        half = getattr(model, name)
        half.mid_block.register_forward_hook(record(arrays, f"{name}/mid_block"))
        half.conv_in.register_forward_hook(record(arrays, f"{name}/conv_in"))
    with torch.no_grad():
        latents = model.encode(torch.tensor(np.tanh(draw(5, 2, 3, 16, 16)))).latent_dist
        arrays |= {"mean": latents.mean.numpy(), "log_variance": latents.logvar.numpy()}
        arrays["decoded"] = model.decode(torch.tensor(draw(6, 2, 4, 8, 8))).sample.numpy()
    save("vae", arrays, config=VAE, keys=keys, inputs="tanh(draw(5, 2, 3, 16, 16)), draw(6, 2, 4, 8, 8)")


def clip() -> None:
    arrays = {}
    tokens = torch.tensor([[98, 3, 7, 99, 99, 99, 99], [98, 1, 2, 3, 4, 5, 99]])
    for act in ("quick_gelu", "gelu"):
        config = transformers.CLIPTextConfig(**CLIP, hidden_act=act)
        model = transformers.CLIPTextModelWithProjection(config)
        keys = filled(model, "")
        with torch.no_grad():
            output = model(tokens, output_hidden_states=True)
        arrays |= {f"{act}/last": output.last_hidden_state.numpy()}
        arrays |= {f"{act}/pooled": output.text_embeds.numpy()}
        arrays |= {f"{act}/hidden_{i}": value.numpy() for i, value in enumerate(output.hidden_states)}
    save("clip", arrays, config=CLIP, keys=keys, tokens=tokens.tolist())


def schedulers() -> None:
    arrays = {}
    for name, config in SCHEDULERS.items():
        scheduler = diffusers.DDIMScheduler.from_config(config)
        scheduler.set_timesteps(4)
        latents, noise, times = torch.tensor(draw(7, 2, 3)), torch.tensor(draw(8, 2, 3)), [3, 999]
        arrays |= {f"{name}/alphas": scheduler.alphas_cumprod.numpy()}
        arrays |= {f"{name}/timesteps": scheduler.timesteps.numpy()}
        arrays[f"{name}/noisy"] = scheduler.add_noise(latents, noise, torch.tensor(times)).numpy()
        if "prediction_type" in config:
            ddpm = diffusers.DDPMScheduler.from_config(scheduler.config)
            arrays[f"{name}/target"] = ddpm.get_velocity(latents, noise, torch.tensor(times)).numpy()
        for i, timestep in enumerate(scheduler.timesteps):
            latents = scheduler.step(torch.tensor(draw(9 + i, 2, 3)), timestep, latents).prev_sample
            arrays[f"{name}/step_{i}"] = latents.numpy()
    inputs = "latents draw(7, 2, 3), noise draw(8, 2, 3), predictions draw(9 + i, 2, 3), time steps [3, 999]"
    save("scheduler", arrays, config=SCHEDULERS, inputs=inputs)


def pipelines() -> None:
    """Inpaint with complete pipelines: four DDIM steps, with and without guidance."""
    arrays = {}
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 6:14] = 1
    images = np.tanh(draw(5, 2, 3, 16, 16))
    inputs = dict(image=torch.tensor(images / 2 + 0.5), mask_image=torch.tensor(mask)[None, None])
    for style in UNETS:
        with tempfile.TemporaryDirectory() as folder:
            write_pipeline(pathlib.Path(folder), style)
            pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        masked = torch.tensor(np.where(mask, np.float32(0), images))
        with torch.no_grad():
            latents = pipeline.vae.encode(masked).latent_dist.mode() * VAE["scaling_factor"]
        for scale in (1.0, 3.0) if style == "sdxl" else (1.0,):
            arrays[f"{style}/guidance_{scale:.0f}"] = pipeline(
                prompt=["photo of a"] * 2,
                negative_prompt=[""] * 2,
                **inputs,
                masked_image_latents=latents,
                latents=torch.tensor(draw(20, 2, 4, 8, 8)),
                height=16,
                width=16,
                strength=1.0,
                num_inference_steps=4,
                guidance_scale=scale,
                output_type="np",
            ).images
    inputs = "images tanh(draw(5, 2, 3, 16, 16)), mask [4:12, 6:14], latents draw(20, 2, 4, 8, 8)"
    save("pipelines", arrays, config={"num_inference_steps": 4}, inputs=inputs)


if __name__ == "__main__":
    unets()
    vae()
    clip()
    schedulers()
    pipelines()
