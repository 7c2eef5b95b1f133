"""ViT-MAE in Hugging Face folders: import, export, and comparison with transformers if installed."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.weights.__main__ import main
from l2l_jax.weights.loading import load_model, original_weights
from tests.reference_arrays import Case, nhwc
from tests.weights.checkpoints import SMALL, assert_same_bits, write_safetensors

STATE = SMALL["mae"].state_dict
CONFIG = dict(model_type="vit_mae", architectures=["ViTMAEForPreTraining"], image_size=32, patch_size=8)
CONFIG |= dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
CONFIG |= dict(decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4)
CONFIG |= dict(decoder_intermediate_size=128, num_channels=3, layer_norm_eps=1e-12, mask_ratio=0.6)
CONFIG |= dict(norm_pix_loss=True, hidden_act="gelu", qkv_bias=True, initializer_range=0.02)
PREPROCESSOR = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], do_normalize=True, size=32)

KEYS = (
    (r"^(cls_token|patch_embed\.proj)", r"vit.embeddings.\1"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"embeddings\.patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^norm", "vit.layernorm"),
    (r"^mask_token", "decoder.mask_token"),
    (r"^blocks", "vit.encoder.layer"),
    (r"^decoder_blocks", "decoder.decoder_layers"),
    (r"^decoder_", "decoder.decoder_"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
"""Replacements from keys of facebookresearch/mae to keys of transformers 4."""
MEMORY = (
    ("vit.encoder.layer", "vit.layers"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    *((f"attention.attention.{name}", f"attention.{name[0]}_proj") for name in ("query", "key", "value")),
)
LATER = {"old": (), "saved": (("decoder.decoder_layers", "decoder.decoder_encoder.layer"),), "memory": MEMORY}


def spelled(version, state_dict=STATE):
    """Return the state dict as saved by transformers 4 ("old"), by 5.24, or as in memory in 5."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, name in KEYS:
            key = re.sub(pattern, name, key)
        parts = {key: value}
        if "attn.qkv" in key:
            names = (key.replace("attn.qkv", f"attention.attention.{x}") for x in ("query", "key", "value"))
            parts = dict(zip(names, np.split(value, 3), strict=True))
        for key, part in parts.items():
            for old, new in LATER[version]:
                key = key.replace(old, new)
            renamed[key] = part
    return renamed


def write_folder(path, state_dict, config=CONFIG, preprocessor=PREPROCESSOR, shards=1):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if shards == 1:
        write_safetensors(path / "model.safetensors", state_dict)
        return path
    files = {key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(state_dict)}
    for file in set(files.values()):
        write_safetensors(path / file, {key: state_dict[key] for key in files if files[key] == file})
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return path


@pytest.mark.parametrize("origin", ["saved", "memory"])
def test_names_of_every_version_are_supported(tmp_path, origin):
    folders = (write_folder(tmp_path / name, spelled(name)) for name in (origin, "old"))
    actual, expected = (load_model(folder)[1] for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_folder_round_trip_without_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "vit-mae", spelled("old"), shards=3)
    assert main(["import", "vit-mae"]) == 0
    assert "Assumed" not in capsys.readouterr().out
    model, params = load_model("pretrained/vit-mae")
    stated = (model.norm_pix_loss, model.mask_ratio, model.layer_norm_eps, model.pixel_mean, model.num_heads)
    assert stated == (True, 0.6, 1e-12, (0.5, 0.5, 0.5), 4)
    np.testing.assert_array_equal(
        params["encoder"]["blocks_1"]["attn"]["qkv"]["bias"], STATE["blocks.1.attn.qkv.bias"]
    )
    assert main(["export", "pretrained/vit-mae", "--output", "back"]) == 0
    assert_same_bits(safetensors.numpy.load_file("back/model.safetensors"), spelled("old"))
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config == CONFIG | {name: config[name] for name in config.keys() - CONFIG.keys()}
    preprocessor = json.loads((tmp_path / "back/preprocessor_config.json").read_text())
    assert PREPROCESSOR.items() <= preprocessor.items()


def test_config_uses_the_sizes_of_the_folder(tmp_path):
    folder = write_folder(tmp_path / "x", spelled("old"))
    assert load_model(folder / "model.safetensors")[0] == load_model(folder)[0]
    facts = original_weights(folder)
    assert facts["config"] == CONFIG and facts["licence"] == "See where the file comes from."
    raw_config = {
        "model": {"pretrained": str(folder), "scan": True},
        "data": {"source": "digits", "forget": ["5"]},
    }
    config = parse_config(raw_config)
    assert (config.family, config.model.width, config.model.scan) == ("mae", 48, True)
    with pytest.raises(UserError, match="norm_pix_loss=True, but config.model.norm_pix_loss is False"):
        load_model(folder, norm_pix_loss=False)


ZEROS = {"vit.embeddings.position_embeddings": np.zeros_like(STATE["pos_embed"])}


@pytest.mark.parametrize(
    "change, config, message",
    [
        (ZEROS, {}, "pos_embed is all zeros: such a model was created without its fixed table"),
        ({}, {"intermediate_size": 100}, "intermediate_size is 100; expected 4 · 48"),
        ({}, {"hidden_act": "relu"}, "expected hidden_act gelu"),
    ],
)
def test_unreadable_parts_are_named(tmp_path, change, config, message):
    folder = write_folder(tmp_path / "x", spelled("old") | change, CONFIG | config)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_damaged_folders(tmp_path):
    encoder = {key: value for key, value in spelled("old").items() if key.startswith("vit.")}
    with pytest.raises(UserError, match="encoder of a ViT.*without a decoder"):
        load_model(write_folder(tmp_path / "encoder", encoder))
    folder = write_folder(tmp_path / "shards", spelled("old"), shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors does not exist"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UserError, match="names a file outside its folder"):
        load_model(folder)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 1e-3)])  # rounded positions
@pytest.mark.parametrize("origin", ["exported", "theirs"])
def test_predictions_match_transformers(tmp_path, origin, dtype, tolerance):
    """Strict loading of an export, and import of the output of `save_pretrained`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path / "hf", spelled("old"), CONFIG | {"norm_pix_loss": False})
    assert main(["import", str(folder), "--output", str(tmp_path / "model")]) == 0
    assert main(["export", str(tmp_path / "model"), "--dtype", dtype, "--output", str(tmp_path / "out")]) == 0
    theirs, loading = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    if origin == "theirs":
        theirs.save_pretrained(tmp_path / "saved")
    model, params = load_model(tmp_path / ("out" if origin == "exported" else "saved"))
    case = Case("mae_tiny")
    normalized = (case["images"] - 0.5) / 0.25 if origin == "exported" else case["images"]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(normalized), noise=torch.tensor(case["noise"]))
    model = model if origin == "exported" else model.replace(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)

    @jax.jit
    def ours(params, images):
        corrupted = model.mask(images, case["noise"], kept=int(16 * (1 - model.mask_ratio)))
        return model.predict(params, corrupted), model.generative_loss(params, images, corrupted)

    prediction, loss = ours(params, nhwc(case["images"]))
    np.testing.assert_allclose(prediction, expected.logits.numpy(), atol=tolerance)
    np.testing.assert_allclose(loss.mean(), expected.loss.numpy(), rtol=1e-4)
