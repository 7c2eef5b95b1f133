"""CLIP's vision tower (Radford et al. 2021): a ViT whose class token is projected to where texts lie too."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.errors import UserError
from l2l_jax.weights.mapping import Ignored, Layout, Rule, Table, conv, dense_rules, linear, norm_rules
from l2l_jax.weights.shapes import count, shape_of, square_side

NORM_EPSILON = 1e-5

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] that CLIP was trained on."""


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x), which OpenAI's models were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of a vision tower.

    Attributes:
      image_size, patch_size: sides in pixels.
      width, depth, num_heads, mlp_width: of the transformer.
      embed_dim: width of the embedding.
      activation: a key of `ACTIVATIONS`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int
    activation: str


PUBLISHED = {
    "ViT-B/32": TowerConfig(224, 32, 768, 12, 12, 3072, 512, "quick_gelu"),
    "ViT-H/14": TowerConfig(224, 14, 1280, 32, 16, 5120, 1024, "gelu"),
}
"""ViT-B/32 of OpenAI and ViT-H/14 of LAION-2B. Weights show neither heads nor activation."""


class Block(nn.Module):
    """Pre-norm transformer block on `[batch, token, width]`."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, (batch, tokens, width) = self.config, x.shape
        y = nn.LayerNorm(NORM_EPSILON, name="norm1")(x)
        q, k, v = (
            nn.Dense(width, name=name)(y).reshape(batch, tokens, config.num_heads, -1)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(batch, tokens, width)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.Dense(config.mlp_width, name="fc1")(nn.LayerNorm(NORM_EPSILON, name="norm2")(x))
        return x + nn.Dense(width, name="fc2")(ACTIVATIONS[config.activation](y))


class Tower(nn.Module):
    """The whole tower."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Embeddings `[batch, embed_dim]`, not normalised, of `[batch, height, width, 3]`, normalised."""
        config = self.config
        patches = (config.patch_size,) * 2
        x = nn.Conv(config.width, patches, patches, "VALID", use_bias=False, name="patches")(x)
        x = x.reshape(len(x), -1, config.width)
        normal = nn.initializers.normal(config.width**-0.5)
        token = self.param("class_token", normal, (config.width,))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, config.width)), x], axis=1)
        x = x + self.param("positions", normal, x.shape[1:])[None]
        x = nn.LayerNorm(NORM_EPSILON, name="norm_before")(x)
        self.sow("intermediates", "embedded", x)
        for i in range(config.depth):
            x = Block(config, name=f"blocks_{i}")(x)
            self.sow("intermediates", f"block_{i}", x)
        x = nn.LayerNorm(NORM_EPSILON, name="norm_after")(x[:, 0])
        return x @ self.param("projection", normal, (config.width, config.embed_dim))


QKV = ("query", "key", "value")

packed = Layout(  # (3 · out, in) ⇄ (3, in, out)
    lambda x: x.reshape(3, -1, x.shape[1]).transpose(0, 2, 1),
    lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
packed_bias = Layout(lambda x: x.reshape(3, -1), lambda x: x.reshape(-1))


_OPEN_CLIP_BLOCK = "visual.transformer.resblocks.{i}"

OPEN_CLIP: Table = [
    Rule("visual.class_embedding", "class_token"),
    Rule("visual.positional_embedding", "positions"),
    Rule("visual.proj", "projection"),
    Rule("visual.conv1.weight", "patches/kernel", conv),
    *norm_rules("visual.ln_pre", "norm_before"),
    *norm_rules(f"{_OPEN_CLIP_BLOCK}.ln_1", "blocks_{i}/norm1"),
    Rule(f"{_OPEN_CLIP_BLOCK}.attn.in_proj_weight", "blocks_{i}/qkv/kernel", packed),
    Rule(f"{_OPEN_CLIP_BLOCK}.attn.in_proj_bias", "blocks_{i}/qkv/bias", packed_bias),
    *dense_rules(f"{_OPEN_CLIP_BLOCK}.attn.out_proj", "blocks_{i}/out"),
    *norm_rules(f"{_OPEN_CLIP_BLOCK}.ln_2", "blocks_{i}/norm2"),
    *dense_rules(f"{_OPEN_CLIP_BLOCK}.mlp.c_fc", "blocks_{i}/fc1"),
    *dense_rules(f"{_OPEN_CLIP_BLOCK}.mlp.c_proj", "blocks_{i}/fc2"),
    *norm_rules("visual.ln_post", "norm_after"),
    Ignored(r"(transformer|token_embedding|ln_final)\..*"),
    Ignored(r"positional_embedding|text_projection|logit_scale|logit_bias|attn_mask"),
    Ignored(r"input_resolution|context_length|vocab_size"),
]
"""The rules of OpenAI's own checkpoints and of open_clip's, which share one layout; texts are left out."""

_HF, _HF_BLOCK = "vision_model", "vision_model.encoder.layers.{i}"

TRANSFORMERS: Table = [
    Rule(f"{_HF}.embeddings.class_embedding", "class_token"),
    Rule(f"{_HF}.embeddings.position_embedding.weight", "positions"),
    Rule("visual_projection.weight", "projection", linear),
    Rule(f"{_HF}.embeddings.patch_embedding.weight", "patches/kernel", conv),
    *norm_rules(f"{_HF}.pre_layrnorm", "norm_before"),  # spelled like this
    *norm_rules(f"{_HF_BLOCK}.layer_norm1", "blocks_{i}/norm1"),
    *(
        rule
        for torch_name, name in zip(("q_proj", "k_proj", "v_proj"), QKV, strict=True)
        for rule in dense_rules(f"{_HF_BLOCK}.self_attn.{torch_name}", f"blocks_{{i}}/{name}")
    ),
    *dense_rules(f"{_HF_BLOCK}.self_attn.out_proj", "blocks_{i}/out"),
    *norm_rules(f"{_HF_BLOCK}.layer_norm2", "blocks_{i}/norm2"),
    *dense_rules(f"{_HF_BLOCK}.mlp.fc1", "blocks_{i}/fc1"),
    *dense_rules(f"{_HF_BLOCK}.mlp.fc2", "blocks_{i}/fc2"),
    *norm_rules(f"{_HF}.post_layernorm", "norm_after"),
    Ignored(r"text_model\..*|text_projection\..*|logit_scale|vision_model\.embeddings\.position_ids"),
]
"""The rules of transformers' `CLIPModel` and `CLIPVisionModelWithProjection`; texts are left out."""


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a library names and arranges the arrays of a tower.

    Attributes:
      name: of the library.
      table: the rules.
      keys: names of the patch embedding, the positions and the projection, the blocks up to their number,
        and the first layer of an MLP.
      projected: which axis of the projection is the embedding.
      packs: whether queries, keys and values lie in one array.
    """

    name: str
    table: Table
    keys: tuple[str, str, str, str, str]
    projected: int
    packs: bool


ARRANGEMENTS = (
    Arrangement(
        "OpenAI or open_clip",
        OPEN_CLIP,
        (
            "visual.conv1.weight", "visual.positional_embedding", "visual.proj",
            f"{_OPEN_CLIP_BLOCK}.", "visual.transformer.resblocks.0.mlp.c_fc.weight",
        ),
        projected=1,
        packs=True,
    ),
    Arrangement(
        "transformers",
        TRANSFORMERS,
        (
            f"{_HF}.embeddings.patch_embedding.weight", f"{_HF}.embeddings.position_embedding.weight",
            "visual_projection.weight", f"{_HF_BLOCK}.", f"{_HF}.encoder.layers.0.mlp.fc1.weight",
        ),
        projected=0,
        packs=False,
    ),
)  # fmt: skip


def recognise(state_dict: Mapping[str, Any]) -> Arrangement:
    """How a state dict is arranged.

    Raises:
      UserError: it holds no vision tower in an arrangement that is known.
    """
    for arrangement in ARRANGEMENTS:
        if arrangement.keys[0] in state_dict:
            return arrangement
    known = " or ".join(arrangement.name for arrangement in ARRANGEMENTS)
    raise UserError(f"these are not weights of CLIP's vision tower as {known} saves them.")


def published_config(state_dict: Mapping[str, Any]) -> tuple[str, TowerConfig]:
    """Name and sizes of the published tower whose shapes a state dict has.

    Raises:
      UserError: its sizes cannot be told, or are those of no published tower.
    """
    arrangement = recognise(state_dict)
    sizes = _sizes(state_dict, arrangement)
    for name, config in PUBLISHED.items():
        if all(getattr(config, field) == value for field, value in sizes.items()):
            return name, config
    shown = ", ".join(f"{name} {value}" for name, value in sizes.items())
    raise UserError(f"this is a CLIP tower of another size ({shown}); known: {', '.join(PUBLISHED)}.")


def _sizes(state_dict: Mapping[str, Any], arrangement: Arrangement) -> dict[str, int]:
    patches, positions, projection, blocks, hidden = arrangement.keys
    width, _, patch_size, _ = shape_of(state_dict, patches, 4)
    places, _ = shape_of(state_dict, positions, 2)
    return dict(
        image_size=patch_size * square_side(places - 1, positions),
        patch_size=patch_size,
        width=width,
        depth=count(state_dict, blocks),
        mlp_width=shape_of(state_dict, hidden, 2)[0],
        embed_dim=shape_of(state_dict, projection, 2)[arrangement.projected],
    )


def stored(params: Mapping[str, Any], arrangement: Arrangement) -> dict[str, Any]:
    """Shapes of what files hold, for a tree of shapes of a `Tower`."""
    if not arrangement.packs:
        return dict(params)
    flat = {}
    for path, like in traverse_util.flatten_dict(params, sep="/").items():
        part = path.split("/")[-2] if "/" in path else path
        if part == QKV[0]:
            flat[path.replace(QKV[0], "qkv")] = jax.ShapeDtypeStruct((3, *like.shape), like.dtype)
        elif part not in QKV:
            flat[path] = like
    return traverse_util.unflatten_dict(flat, sep="/")


def unpacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a `Tower`, from arrays at the paths of `stored`."""
    flat = {}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        if "/qkv/" in path:
            flat |= {
                path.replace("qkv", name): part for name, part in zip(QKV, np.asarray(value), strict=True)
            }
        else:
            flat[path] = value
    return traverse_util.unflatten_dict(flat, sep="/")
