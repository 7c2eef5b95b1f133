"""Checkpoint format of transformers' `ViTMAEForPreTraining`: folders on Hugging Face."""

import re
from typing import Any

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models.mae.convert import ENCODER_ALONE, IMAGENET, Original
from l2l_jax.models.mapping import Fields, Origin, StateDict, StoredArray

NEWER = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layers?\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
"""Patterns from keys that transformers 5.24 saves (5 has them in memory) to keys of 4, which 5 also loads."""

STARTS = {
    "vit.encoder.layer.": "blocks.",
    "vit.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.cls_token": "cls_token",
    "vit.layernorm.": "norm.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_layers.": "decoder_blocks.",
    "decoder.decoder_": "decoder_",
}
"""Key prefixes in transformers 4 and their names in facebookresearch/mae; the first match applies."""

INNER = {
    ".attention.output.dense.": ".attn.proj.",
    ".attention.attention.": ".attn.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
}
"""Replacements within keys; all are applied, in this order."""

THIRDS = ("query", "key", "value")

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
"""Defaults of optional keys in config.json."""

CONFIG_NAMES = dict(
    image_size="image_size",
    patch_size="patch_size",
    channels="num_channels",
    width="hidden_size",
    depth="num_hidden_layers",
    num_heads="num_attention_heads",
    decoder_width="decoder_hidden_size",
    decoder_depth="decoder_num_hidden_layers",
    decoder_num_heads="decoder_num_attention_heads",
    mask_ratio="mask_ratio",
    norm_pix_loss="norm_pix_loss",
    layer_norm_eps="layer_norm_eps",
)
"""Names of the fields of `MAE` in config.json."""


def _renamed(key: str, starts: dict[str, str], inner: dict[str, str]) -> str:
    start = next((start for start in starts if key.startswith(start)), "")
    key = starts.get(start, "") + key.removeprefix(start)
    for old, new in inner.items():
        key = key.replace(old, new)
    return key


class HuggingFace(Original):
    """Folders with config.json and weights."""

    wrapper = ""
    is_folder = True

    def recognize(self, state_dict: StateDict) -> bool:
        patches = "embeddings.patch_embeddings.projection.weight"
        if not any(key.removeprefix("vit.") == patches for key in state_dict):
            return False
        if not any(key.startswith("decoder.") for key in state_dict):
            raise UserError(ENCODER_ALONE)
        return True

    def unwrap(self, state_dict: StateDict) -> StateDict:
        """Rename keys as in facebookresearch/mae and concatenate queries, keys and values."""
        renamed = {}
        for key, value in state_dict.items():
            for pattern, name in NEWER:
                key = re.sub(pattern, name, key)
            renamed[_renamed(key, STARTS, INNER)] = value
        for key in [key for key in renamed if ".attn.query." in key]:
            names = [key.replace(".query.", f".{third}.") for third in THIRDS]
            if all(name in renamed for name in names):
                renamed[key.replace(".query.", ".qkv.")] = _joined([renamed.pop(name) for name in names])
        return renamed

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        config = {**DEFAULTS, **origin.get("config", {})}
        for prefix in ("", "decoder_"):
            width, hidden = config[f"{prefix}hidden_size"], config[f"{prefix}intermediate_size"]
            if hidden != 4 * width:
                raise UserError(f"config.json: {prefix}intermediate_size is {hidden}; expected 4 · {width}.")
        if config["hidden_act"] != "gelu" or not config["qkv_bias"]:
            raise UserError("config.json: expected hidden_act gelu and qkv_bias true.")
        hidden = ("num_heads", "decoder_num_heads", "mask_ratio", "norm_pix_loss", "layer_norm_eps")
        fields = {field: config[CONFIG_NAMES[field]] for field in hidden}
        preprocessor = origin.get("preprocessor")
        if preprocessor is None:
            return fields
        if not preprocessor.get("do_normalize", True):
            channels = sizes["channels"]
            return fields | dict(pixel_mean=(0.0,) * channels, pixel_std=(1.0,) * channels)
        mean, std = (tuple(preprocessor.get(f"image_{name}", ())) for name in ("mean", "std"))
        return fields | (dict(pixel_mean=mean, pixel_std=std) if mean and std else {})

    def guessed(self, origin: Origin, sizes: Fields) -> Fields:
        return IMAGENET if sizes["channels"] == 3 else {}

    def licence(self, file: str) -> str:
        return ""

    def folder(self, state_dict: StateDict, model: Any, origin: Origin) -> dict[str, Any]:
        arrays: dict[str, np.ndarray] = {}
        for key, value in state_dict.items():
            if ".attn.qkv." in key:
                for third, part in zip(THIRDS, np.split(value, 3), strict=True):
                    arrays[key.replace(".qkv.", f".{third}.")] = np.ascontiguousarray(part)
            else:
                arrays[key] = value
        config = {**DEFAULTS, **origin.get("config", {})}
        config |= {name: getattr(model, field) for field, name in CONFIG_NAMES.items()}
        config |= dict(architectures=["ViTMAEForPreTraining"], model_type="vit_mae")
        config |= dict(intermediate_size=4 * model.width, decoder_intermediate_size=4 * model.decoder_width)
        config["dtype"] = str(state_dict["cls_token"].dtype)
        config.pop("torch_dtype", None)
        preprocessor: dict[str, Any] = dict(image_processor_type="ViTImageProcessor", resample=2)
        preprocessor |= dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
        size = dict.fromkeys(("height", "width"), model.image_size)
        preprocessor |= dict(rescale_factor=1 / 255, size=size)
        preprocessor |= origin.get("preprocessor", {})
        preprocessor |= {"image_mean": list(model.pixel_mean), "image_std": list(model.pixel_std)}
        starts, inner = ({ours: theirs for theirs, ours in names.items()} for names in (STARTS, INNER))
        return {
            "config.json": config,
            "preprocessor_config.json": preprocessor,
            "model.safetensors": {_renamed(key, starts, inner): value for key, value in arrays.items()},
        }


def _joined(thirds: list[Any]) -> StoredArray:
    first = thirds[0]
    shape = (sum(third.shape[0] for third in thirds), *first.shape[1:])
    return StoredArray(shape, first.dtype, lambda: np.concatenate([np.asarray(third) for third in thirds]))
