"""Prompt embeddings of Stable Diffusion's CLIP text encoders, computed as in diffusers."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.latent_diffusion.blocks import check_config
from l2l_jax.models.layers import apply
from l2l_jax.models.layers.clip import ACTIVATIONS, NORM_EPSILON, Block, block_names
from l2l_jax.models.mapping import StateDict, Table

TABLE = Table(
    {
        "tokens": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight",
        **block_names("text_model"),
        "norm": "text_model.final_layer_norm",
        "projection": "text_projection",
    },
    ignored=r"text_model\.embeddings\.position_ids",
)
"""Names in transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`."""

# Pattern for the words of a text, which are then split into tokens
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TextFeatures(NamedTuple):
    """Token features `[batch, token, width]` and the pooled prompt embedding."""

    last: Array  # after the final normalization
    penultimate: Array  # before the last block
    pooled: Array | None  # embedding of the entire prompt `[batch, embed_dim]`, or None


class TextEncoder(nn.Module):
    """CLIP's text tower."""

    vocabulary: int  # number of distinct tokens
    length: int  # maximum number of tokens of a prompt
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    activation: str  # key of `ACTIVATIONS`
    embed_dim: int  # width of the pooled prompt embedding; 0 for none
    end: int  # id of the end-of-prompt token; as in transformers, 2 means the largest id

    @classmethod
    def from_json(cls, config: Mapping[str, Any], projected: bool) -> Self:
        """Read config.json of a text encoder; `projected` adds a projection of the pooled prompt."""
        supported = dict(
            layer_norm_eps=(NORM_EPSILON,), hidden_act=ACTIVATIONS, model_type=("clip_text_model",)
        )
        check_config("text_encoder/config.json", config, supported)
        return cls(
            vocabulary=config.get("vocab_size", 49408),
            length=config.get("max_position_embeddings", 77),
            width=config.get("hidden_size", 512),
            depth=config.get("num_hidden_layers", 12),
            num_heads=config.get("num_attention_heads", 8),
            mlp_width=config.get("intermediate_size", 2048),
            activation=config.get("hidden_act", "quick_gelu"),
            embed_dim=config.get("projection_dim", 512) if projected else 0,
            end=config.get("eos_token_id", 49407),
        )

    @nn.compact
    def __call__(self, ids: Array) -> TextFeatures:
        """Encode token ids `[batch, token]`, at most `length` per prompt."""
        normal = nn.initializers.normal(0.02)
        x = self.param("tokens", normal, (self.vocabulary, self.width))[ids]
        positions = self.param("positions", normal, (self.length, self.width))
        x = penultimate = x + positions[None, : ids.shape[1]]
        for i in range(self.depth):
            penultimate = x
            x = Block(self.num_heads, self.mlp_width, self.activation, True, name=f"blocks_{i}")(x)
        last = nn.LayerNorm(NORM_EPSILON, name="norm")(x)
        if not self.embed_dim:
            return TextFeatures(last, penultimate, None)
        ends = jnp.argmax(ids if self.end == 2 else ids == self.end, axis=-1)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        projection = nn.Dense(self.embed_dim, use_bias=False, name="projection")
        return TextFeatures(last, penultimate, projection(pooled))


class EncoderFiles(NamedTuple):
    """Files of a pipeline's text encoder: content of config.json, weights, and the tokenizer's folder."""

    config: Mapping[str, Any]
    state_dict: StateDict
    tokenizer: pathlib.Path


def embed_prompts(prompts: Sequence[str], encoders: Sequence[EncoderFiles]) -> dict[str, np.ndarray]:
    """Compute prompt embeddings for the U-Net, float32; prompts that are too long are truncated.

    "words" is `[prompt, token, width]`. For the two encoders of SDXL, it concatenates their features before
    the last block, and "pooled" `[prompt, embed_dim]` is that of the second encoder.
    """
    features = [_features(prompts, files) for files in encoders]
    if len(features) == 1:
        return {"words": np.asarray(features[0].last)}
    if features[-1].pooled is None:
        raise UserError("text_encoder_2 has no text_projection.weight, which SDXL needs.")
    words = np.concatenate([each.penultimate for each in features], axis=-1)
    return {"words": words, "pooled": np.asarray(features[-1].pooled)}


def _features(prompts: Sequence[str], files: EncoderFiles) -> TextFeatures:
    encoder = TextEncoder.from_json(files.config, "text_projection.weight" in files.state_dict)
    ids = token_ids(prompts, files.tokenizer, encoder.length)
    if ids.max() >= encoder.vocabulary:
        raise UserError(f"{files.tokenizer} makes token {ids.max()}; the encoder knows {encoder.vocabulary}.")
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]
    prefixes = ("text_model.", "text_projection.")  # transformers 5 omits the first prefix
    state = {k if k.startswith(prefixes) else f"text_model.{k}": x for k, x in files.state_dict.items()}
    params = mapping.to_flax(TABLE, state, shapes)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(lambda params: apply(encoder, params, ids))(params))


def token_ids(prompts: Sequence[str], folder: pathlib.Path, length: int) -> np.ndarray:
    """Return token ids `[prompt, length]`; raise a UserError if the folder has no tokenizer."""
    tokenizer, config = _tokenizer(folder)
    length = min(length, config.get("model_max_length", length))

    def special(name: str, default: str) -> int:
        text = config.get(name, default)
        text = text["content"] if isinstance(text, Mapping) else text
        token = tokenizer.token_to_id(text)
        if token is None:
            raise UserError(f"{folder}: its {name}, {text}, is not in its vocabulary.")
        return token

    end = special("eos_token", "<|endoftext|>")
    start, padding = special("bos_token", "<|startoftext|>"), special("pad_token", "<|endoftext|>")
    rows = []
    for encoding in tokenizer.encode_batch(list(prompts), add_special_tokens=False):
        row = [start, *encoding.ids[: length - 2], end]
        rows.append(row + [padding] * (length - len(row)))
    return np.array(rows, np.int32)


def _tokenizer(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    try:
        import tokenizers  # optional dependency
        from tokenizers import normalizers, pre_tokenizers
    except ImportError as error:
        raise UserError("Embedding prompts needs tokenizers: pip install tokenizers") from error
    config: dict[str, Any] = {}
    try:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):  # transformers 4 kept the latter
            if (folder / name).is_file() and "added_tokens_decoder" not in config:
                config |= json.loads((folder / name).read_text("utf-8"))
        if not (folder / "vocab.json").is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer, config
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        marks = dict(end_of_word_suffix="</w>", unk_token="<|endoftext|>", continuing_subword_prefix="")
        model = tokenizers.models.BPE.from_file(*files, **marks)
    except Exception as error:  # tokenizers raises bare exceptions
        raise UserError(f"{folder} holds no tokenizer that can be read ({error}).") from error
    tokenizer, space = tokenizers.Tokenizer(model), tokenizers.Regex(r"\s+")
    changes = normalizers.NFC(), normalizers.Replace(space, " "), normalizers.Lowercase()
    tokenizer.normalizer = normalizers.Sequence(list(changes))
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    return tokenizer, config
