"""Hugging Face folders of transformers' `ViTMAEForPreTraining`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models.mae.convert import ENCODER_ALONE, IMAGENET, ORIGINAL
from l2l_jax.models.mapping import StoredArray

SPELLINGS = (
    (r"^vit\.(encoder\.layer|layers)\.", "blocks."),
    (r"^decoder\.decoder_(layers|encoder\.layer|encoder\.layers)\.", "decoder_blocks."),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.layernorm\.", "norm."),
    (r"^decoder\.mask_token$", "mask_token"),
    (r"^decoder\.decoder_", "decoder_"),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
"""Keys of transformers 4, of what 5.24 saves, and of 5 in memory, to those of facebookresearch/mae."""

WRITTEN = (
    (r"^blocks\.", "vit.encoder.layer."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^norm\.", "vit.layernorm."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^decoder_", "decoder.decoder_"),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)
"""Keys of transformers 4, which 5 loads, too."""

THIRDS = ("query", "key", "value")


def _respelled(key: str, spellings: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in spellings:
        key = re.sub(pattern, name, key)
    return key


def recognize(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a ViT-MAE; an encoder alone raises a UserError."""
    patches = "embeddings.patch_embeddings.projection.weight"
    if not any(key.removeprefix("vit.") == patches for key in state_dict):
        return False
    if not any(key.startswith("decoder.") for key in state_dict):
        raise UserError(ENCODER_ALONE)
    return True


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename keys to those of facebookresearch/mae and join queries, keys and values."""
    renamed = {_respelled(key, SPELLINGS): value for key, value in state_dict.items()}
    for key in [key for key in renamed if ".attn.query." in key]:
        names = [key.replace(".query.", f".{third}.") for third in THIRDS]
        if all(name in renamed for name in names):
            renamed[key.replace(".query.", ".qkv.")] = _joined([renamed.pop(name) for name in names])
    return renamed


def _joined(thirds: list[Any]) -> StoredArray:
    first = thirds[0]
    rows = sum(third.shape[0] for third in thirds)
    return StoredArray(
        (rows, *first.shape[1:]), first.dtype, lambda: np.concatenate([np.asarray(third) for third in thirds])
    )


def stated(origin: Mapping[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Read config.json and preprocessor_config.json.

    Raises:
      UserError: An architecture that `MAE` cannot represent.
    """
    config = {**DEFAULTS, **origin.get("config", {})}
    for prefix in ("", "decoder_"):
        width, hidden = config[f"{prefix}hidden_size"], config[f"{prefix}intermediate_size"]
        if hidden != 4 * width:
            raise UserError(f"config.json: {prefix}intermediate_size is {hidden}; expected 4 · {width}.")
    if config["hidden_act"] != "gelu" or not config["qkv_bias"]:
        raise UserError("config.json: expected hidden_act gelu and qkv_bias true.")
    names = dict(num_heads="num_attention_heads", decoder_num_heads="decoder_num_attention_heads")
    same = ("mask_ratio", "norm_pix_loss", "layer_norm_eps")
    found = {field: config[name] for field, name in (names | {name: name for name in same}).items()}
    preprocessor = origin.get("preprocessor")
    if preprocessor is None:
        return found
    if not preprocessor.get("do_normalize", True):
        channels = sizes["channels"]
        return found | dict(pixel_mean=(0.0,) * channels, pixel_std=(1.0,) * channels)
    mean, std = (tuple(preprocessor.get(f"image_{name}", ())) for name in ("mean", "std"))
    return found | (dict(pixel_mean=mean, pixel_std=std) if mean and std else {})


def folder(state_dict: Mapping[str, np.ndarray], model: Any, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files of a folder that `ViTMAEForPreTraining.from_pretrained` loads."""
    apart: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        if ".attn.qkv." in key:
            for third, part in zip(THIRDS, np.split(value, 3), strict=True):
                apart[key.replace(".qkv.", f".{third}.")] = np.ascontiguousarray(part)
        else:
            apart[key] = value
    config = {**DEFAULTS, **origin.get("config", {})} | dict(
        architectures=["ViTMAEForPreTraining"],
        model_type="vit_mae",
        image_size=model.image_size,
        patch_size=model.patch_size,
        num_channels=model.channels,
        hidden_size=model.width,
        intermediate_size=4 * model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.num_heads,
        decoder_hidden_size=model.decoder_width,
        decoder_intermediate_size=4 * model.decoder_width,
        decoder_num_hidden_layers=model.decoder_depth,
        decoder_num_attention_heads=model.decoder_num_heads,
        mask_ratio=model.mask_ratio,
        norm_pix_loss=model.norm_pix_loss,
        layer_norm_eps=model.layer_norm_eps,
        dtype=str(state_dict["cls_token"].dtype),
    )
    config.pop("torch_dtype", None)
    size = {"height": model.image_size, "width": model.image_size}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "size": size,
        "do_resize": True,
        "do_rescale": True,
    }
    preprocessor |= {"rescale_factor": 1 / 255, "resample": 2, "do_normalize": True}
    preprocessor |= origin.get("preprocessor", {})
    preprocessor |= {"image_mean": list(model.pixel_mean), "image_std": list(model.pixel_std)}
    return {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "model.safetensors": {_respelled(key, WRITTEN): value for key, value in apart.items()},
    }


DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    hidden_act="gelu",
    qkv_bias=True,
    decoder_hidden_size=512,
    decoder_intermediate_size=2048,
    decoder_num_attention_heads=16,
    mask_ratio=0.75,
    norm_pix_loss=False,
    layer_norm_eps=1e-12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
"""What config.json need not say."""

HUGGING_FACE = dataclasses.replace(
    ORIGINAL,
    recognize=recognize,
    stated=stated,
    guessed=lambda origin, sizes: IMAGENET if sizes["channels"] == 3 else {},
    licence=lambda file: "",
    wrapper="",
    unwrap=unwrap,
    folder=folder,
)
