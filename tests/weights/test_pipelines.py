"""Pipelines of diffusers: import, export, comparison with its arrays and, if installed, with diffusers."""

import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.models.adapters import merged, new_adapter
from l2l_jax.weights.__main__ import main
from l2l_jax.weights.adapters import adapter_bytes
from l2l_jax.weights.loading import load_model, load_pretrained, original_weights
from l2l_jax.weights.saved_models import fingerprint
from tests.fixtures.pipelines import STYLES, write_pipeline
from tests.reference_arrays import Case, nhwc
from tests.weights.checkpoints import assert_same_bits

pytestmark = pytest.mark.usefixtures("one_device")

MASK = np.zeros((16, 16), bool)
MASK[4:12, 6:14] = True
PROMPTS = dict(prompts=("", "photo of a"), prompt="photo of a")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


IMAGES = nhwc(np.tanh(draw(5, 2, 3, 16, 16)))
NOISE = nhwc(draw(20, 2, 4, 8, 8))


def inpainted(model, params, **fields):
    """Return complete decoded images in [0, 1] of four steps from `NOISE`, with mean masked latents."""
    model = model.replace(sample_steps=4, **fields)
    run = jax.jit(lambda params: model.inpaint_with(params, IMAGES, MASK, NOISE, np.zeros_like(NOISE)))
    return np.clip(run(params) / 2 + 0.5, 0, 1)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    pytest.importorskip("tokenizers")
    return {style: write_pipeline(tmp_path_factory.mktemp("pipelines") / style, style) for style in STYLES}


@pytest.fixture(scope="module")
def imported(pipelines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "sd15"
    flags = [f"--set={name}={value!r}" for name, value in PROMPTS.items()]
    assert main(["import", str(pipelines["sd15"]), "--output", str(folder), *flags]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_images_match_diffusers(pipelines, style):
    """Networks, prompts, sampler and mask together; SDXL also with guidance."""
    model, params = load_model(pipelines[style], **PROMPTS)
    runs = {"guidance_1": None} | ({"guidance_3": 3.0} if style == "sdxl" else {})
    for name, scale in runs.items():
        expected = Case("latent_pipelines")[f"{style}/{name}"]
        np.testing.assert_allclose(inpainted(model, params, guidance_scale=scale), expected, atol=1e-4)


def test_pipeline_round_trip(pipelines, imported, tmp_path, capsys):
    model, params = load_model(imported)
    assert (model.image_size, model.prompt_words, model.prompts) == (16, 12, PROMPTS["prompts"])
    assert original_weights(imported)["pipeline"] == str(pipelines["sd15"])
    assert main(["export", str(imported), "--output", str(tmp_path / "back")]) == 0
    for path in (path for path in pipelines["sd15"].rglob("*") if path.is_file()):
        written = tmp_path / "back" / path.relative_to(pipelines["sd15"])
        if path.suffix == ".safetensors":
            assert_same_bits(*(safetensors.numpy.load_file(x) for x in (written, path)))
        else:
            assert written.read_bytes() == path.read_bytes()
    again, others = load_model(tmp_path / "back", **PROMPTS)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params, others)
    capsys.readouterr()
    assert main(["inspect", str(pipelines["sd15"])]) == 0
    output = capsys.readouterr().out
    assert "diffusers pipeline" in output and "import:      possible" in output and "Open RAIL-M" in output


def test_config_uses_the_fields_of_the_folder(pipelines):
    raw_config = {
        "pretrained": str(pipelines["sd2"]),
        "prompts": ("", "a photo of {class}"),
        "sample_steps": 4,
    }
    data = {"source": "digits", "forget": ["5"]}
    config = parse_config({"model": raw_config, "data": data})
    assert (config.model.prompts, config.model.unet.heads) == (("", "a photo of 5"), (1, 4))
    params = load_pretrained(pipelines["sd2"], config.family, config.model)
    assert params["prompts"]["words"].shape == (2, 12, 12)
    config = parse_config(
        {"model": raw_config | {"schedule": {"prediction_type": "v_prediction"}}, "data": data}
    )
    with pytest.raises(UserError, match="this model has schedule.prediction_type=epsilon, but config.model"):
        load_pretrained(pipelines["sd2"], config.family, config.model)


def halves(folder):
    path = folder / "unet" / WEIGHTS
    state = {key: x.astype(np.float16) for key, x in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(state, path.with_name(WEIGHTS.replace(".safe", ".fp16.safe")))
    path.unlink()
    return state


def shards(folder):
    state, files = halves(folder), {}
    next((folder / "unet").glob("*.safetensors")).unlink()
    for i, key in enumerate(state):
        files[key] = f"diffusion_pytorch_model-0000{i % 2 + 1}-of-00002.fp16.safetensors"
    for file in set(files.values()):
        shard = {key: state[key] for key in files if files[key] == file}
        safetensors.numpy.save_file(shard, folder / "unet" / file)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": files}))
    return state


def torch_file(folder):
    torch = pytest.importorskip("torch")
    state = safetensors.numpy.load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    torch.save(tensors, folder / "unet/diffusion_pytorch_model.bin")
    return state


def old_names(folder):
    """Rename the autoencoder's attention as in diffusers before 0.15."""
    path = folder / "vae" / WEIGHTS
    state = safetensors.numpy.load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    safetensors.numpy.save_file(state, path)
    return safetensors.numpy.load_file(folder / "unet" / WEIGHTS)


@pytest.mark.parametrize("change", [halves, shards, torch_file, old_names])
def test_other_file_formats_are_converted(tmp_path, change):
    pytest.importorskip("tokenizers")
    folder = write_pipeline(tmp_path / "x", "sd15")
    state = change(folder)
    assert main(["import", str(folder), "--output", str(tmp_path / "model")]) == 0
    output = ["--dtype", str(state["conv_in.bias"].dtype), "--output", str(tmp_path / "back")]
    assert main(["export", str(tmp_path / "model"), *output]) == 0
    assert_same_bits(safetensors.numpy.load_file(tmp_path / "back/unet" / WEIGHTS), state)
    vae = safetensors.numpy.load_file(tmp_path / "back/vae" / WEIGHTS)
    assert "decoder.mid_block.attentions.0.to_out.0.weight" in vae


def changed(folder, name, **values):
    path = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_unreadable_parts_are_named(tmp_path, monkeypatch):
    folder = write_pipeline(tmp_path / "x", "sd15")
    with pytest.raises(UserError, match=r"the prompt 'a \{class\}' needs the names of classes"):
        load_model(folder, prompts=("", "a {class}"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="needs tokenizers: pip install tokenizers"):
        load_model(folder)
    changed(folder, "unet", mid_block_type="UNetMidBlock2D")
    with pytest.raises(UserError, match="x: unet/config.json: mid_block_type UNetMidBlock2D is not supp"):
        load_model(folder)
    changed(folder, "unet", mid_block_type="UNetMidBlock2DCrossAttn", in_channels=4)
    with pytest.raises(UserError, match="expected an inpainting model"):
        load_model(folder)
    changed(folder, "scheduler", prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type sample is not supported"):
        load_model(folder)
    (folder / "vae" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="vae holds no weights"):
        load_model(folder)
    (folder / "vae/config.json").unlink()
    with pytest.raises(UserError, match="the pipeline has no vae"):
        load_model(folder)


def test_moved_pipeline(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    folder = write_pipeline(tmp_path / "x", "sdxl")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"image_encoder": ["transformers", "CLIP"]}))
    assert main(["import", str(folder), "--output", str(tmp_path / "model")]) == 0
    folder.rename(tmp_path / "moved")
    export = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "back")]
    assert main(export) == 1
    assert "name a copy with --pipeline FOLDER" in capsys.readouterr().err
    assert main([*export, "--pipeline", str(tmp_path / "moved")]) == 0
    assert (tmp_path / "back/text_encoder_2/model.safetensors").is_file()
    absent = {"image_encoder": [None, None]}  # a component that was not downloaded
    assert json.loads((tmp_path / "back/model_index.json").read_text()) == index | absent


@pytest.fixture(scope="module")
def lora(imported, tmp_path_factory):
    model, params = load_model(imported)
    parts = {part: params[part] for part in model.generative_parts}
    adapter = new_adapter(parts, "lora", 2, jax.random.key(0))
    adapter = jax.tree.map(lambda x: draw(x.size, *x.shape) / 20, adapter)
    card = dict(family="latent_diffusion", adapter="lora", adapter_rank=2)
    card["base"] = fingerprint(params, model.generative_parts)
    path = tmp_path_factory.mktemp("lora") / "adapter.safetensors"
    path.write_bytes(adapter_bytes(adapter, card))
    return path, adapter


def export_lora(imported, lora, folder):
    output = folder / "pytorch_lora_weights.safetensors"
    flags = ["--adapter", str(lora[0]), "--output", str(output), "--lora"]
    assert main(["export", str(imported), *flags]) == 0
    return safetensors.numpy.load_file(output)


def test_lora_files_have_the_change_of_each_weight(imported, lora, tmp_path):
    arrays = export_lora(imported, lora, tmp_path)
    command = ["export", str(imported), "--adapter", str(lora[0]), "--output"]
    assert main([*command, str(tmp_path / "merged")]) == 0
    assert main(["export", str(imported), "--output", str(tmp_path / "plain")]) == 0
    after, before = (
        safetensors.numpy.load_file(tmp_path / x / "unet" / WEIGHTS) for x in ("merged", "plain")
    )
    changes = {key: after[key] - before[key] for key in after if not np.array_equal(after[key], before[key])}
    names = {key.removeprefix("unet.").rpartition(".lora_")[0] for key in arrays}
    assert {f"{name}.weight" for name in names} == set(changes)
    for name in names:
        down, up = (arrays[f"unet.{name}.lora_{x}.weight"] for x in "AB")
        change = np.einsum("orxy,rihw->oihw", up, down) if down.ndim == 4 else up @ down
        np.testing.assert_allclose(change, changes[f"{name}.weight"], atol=1e-6)


def test_lora_requires_an_adapter_and_a_file(imported, lora, tmp_path, capsys):
    assert main(["export", str(imported), "--lora", "--output", str(tmp_path / "x.safetensors")]) == 1
    assert "give --adapter FILE" in capsys.readouterr().err


def theirs(folder, diffusers, **options):
    """Return images inpainted by diffusers with a strictly loaded pipeline folder, and the pipeline."""
    import torch

    for name in ("unet", "vae"):
        kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[name]
        _, loading = kind.from_pretrained(folder / name, output_loading_info=True)
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if options:
        pipeline.load_lora_weights(**options)
    images = torch.tensor(IMAGES).movedim(-1, 1)
    with torch.no_grad():
        latents = pipeline.vae.encode(images * torch.tensor(~MASK)).latent_dist.mode() * 0.13
    return pipeline(
        prompt=["photo of a"] * 2,
        image=images / 2 + 0.5,
        mask_image=torch.tensor(MASK, dtype=torch.float32)[None, None],
        masked_image_latents=latents,
        latents=torch.tensor(NOISE).movedim(-1, 1),
        **dict(height=16, width=16, num_inference_steps=4, guidance_scale=1.0, output_type="np"),
    ).images


def test_diffusers_loads_an_export_and_a_lora(imported, lora, tmp_path):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model, params = load_model(imported)
    assert main(["export", str(imported), "--output", str(tmp_path / "back")]) == 0
    plain = inpainted(model, params)
    np.testing.assert_allclose(plain, theirs(tmp_path / "back", diffusers), atol=1e-4)
    pytest.importorskip("peft")
    export_lora(imported, lora, tmp_path)
    images = theirs(tmp_path / "back", diffusers, pretrained_model_name_or_path_or_dict=tmp_path)
    ours = inpainted(model, merged(params, lora[1]))
    np.testing.assert_allclose(ours, images, atol=1e-4)
    assert np.abs(ours - plain).max() > 0.01
