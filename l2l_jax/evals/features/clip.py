"""CLIP's vision tower (Radford et al. 2021): a ViT whose class token is projected to the text embeddings."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.layers.clip import NORM_EPSILON, Block, block_names
from l2l_jax.models.mapping import Table, linear, shape_of

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)  # statistics of CLIP's training pixels in [0, 1]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of a vision tower; the activation is a key of `layers.clip.ACTIVATIONS`."""

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
"""ViT-B/32 of OpenAI and ViT-H/14 of LAION-2B. Heads and activation cannot be inferred from the weights."""


class Tower(nn.Module):
    """A vision tower."""

    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return embeddings `[batch, embed_dim]`, not normalized, of normalized images."""
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
            x = Block(config.num_heads, config.mlp_width, config.activation, name=f"blocks_{i}")(x)
            self.sow("intermediates", f"block_{i}", x)
        x = nn.LayerNorm(NORM_EPSILON, name="norm_after")(x[:, 0])
        return x @ self.param("projection", normal, (config.width, config.embed_dim))


QKV = ("query", "key", "value")
_PACKED = re.compile(r"(visual\..*\.attn\.)in_proj_(weight|bias)")


def unpack(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Split the packed queries, keys and values of the vision tower in a state dict.

    OpenAI and open_clip save them as one array, `in_proj_weight`; here they are `query.weight` and so on.
    """
    unpacked: dict[str, Any] = {}
    for key, value in state_dict.items():
        if match := _PACKED.fullmatch(key):
            parts = np.split(np.asarray(value), 3)
            unpacked |= {f"{match[1]}{name}.{match[2]}": x for name, x in zip(QKV, parts, strict=True)}
        else:
            unpacked[key] = value
    return unpacked


OPEN_CLIP = Table(
    {
        "class_token": "visual.class_embedding",
        "positions": "visual.positional_embedding",
        "projection": "visual.proj",
        "patches": "visual.conv1",
        "norm_before": "visual.ln_pre",
        "norm_after": "visual.ln_post",
        "blocks_{i}/norm{j}": "visual.transformer.resblocks.{i}.ln_{j}",
        "blocks_{i}/fc1": "visual.transformer.resblocks.{i}.mlp.c_fc",
        "blocks_{i}/fc2": "visual.transformer.resblocks.{i}.mlp.c_proj",
        "blocks_{i}/out": "visual.transformer.resblocks.{i}.attn.out_proj",
        "blocks_{i}/{name}": "visual.transformer.resblocks.{i}.attn.{name}",
    },
    ignored=r"(transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection|logit_scale"
    r"|logit_bias|attn_mask|input_resolution|context_length|vocab_size",
)
"""Names in OpenAI's and open_clip's checkpoints after `unpack`; the text tower is ignored."""

TRANSFORMERS = Table(
    {
        "class_token": "vision_model.embeddings.class_embedding",
        "positions": "vision_model.embeddings.position_embedding.weight",
        "projection": ("visual_projection.weight", linear),
        "patches": "vision_model.embeddings.patch_embedding",
        "norm_before": "vision_model.pre_layrnorm",  # sic
        "norm_after": "vision_model.post_layernorm",
        **block_names("vision_model"),
    },
    ignored=r"text_model\..*|text_projection\..*|logit_scale|vision_model\.embeddings\.position_ids",
)
"""Names in transformers' `CLIPModel` and `CLIPVisionModelWithProjection`; the text tower is ignored."""


def recognize(state_dict: Mapping[str, Any]) -> tuple[Table, str, TowerConfig]:
    """Identify the layout of a state dict after `unpack`, and the name and config of its published tower.

    Raises:
      UserError: The state dict does not hold a vision tower in a known layout, or of a published size.
    """
    if "visual.conv1.weight" in state_dict:
        table, keys, embed_axis = OPEN_CLIP, _OPEN_CLIP_KEYS, 1
    elif "vision_model.embeddings.patch_embedding.weight" in state_dict:
        table, keys, embed_axis = TRANSFORMERS, _HF_KEYS, 0
    else:
        raise UserError(
            "these are not weights of CLIP's vision tower as OpenAI, open_clip or transformers save them."
        )
    patches, positions, projection, blocks, hidden = keys
    width, _, patch_size, _ = shape_of(state_dict, patches, 4)
    tokens, _ = shape_of(state_dict, positions, 2)
    sizes = dict(
        image_size=patch_size * mapping.square_side(tokens - 1, positions),
        patch_size=patch_size,
        width=width,
        depth=mapping.count(state_dict, blocks),
        mlp_width=shape_of(state_dict, hidden, 2)[0],
        embed_dim=shape_of(state_dict, projection, 2)[embed_axis],
    )
    for name, config in PUBLISHED.items():
        if all(getattr(config, field) == value for field, value in sizes.items()):
            return table, name, config
    given = ", ".join(f"{name} {value}" for name, value in sizes.items())
    raise UserError(f"this is a CLIP tower of another size ({given}); known: {', '.join(PUBLISHED)}.")


_OPEN_CLIP_KEYS = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    "visual.transformer.resblocks.{i}.",
    "visual.transformer.resblocks.0.mlp.c_fc.weight",
)
_HF_KEYS = (
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "visual_projection.weight",
    "vision_model.encoder.layers.{i}.",
    "vision_model.encoder.layers.0.mlp.fc1.weight",
)
"""Keys of patch embedding, positions, projection, the blocks and the first layer of an MLP."""
