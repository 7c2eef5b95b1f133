"""Transformer blocks of CLIP (Radford et al. 2021) for images and text."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax import Array

NORM_EPSILON = 1e-5


def quick_gelu(x: Array) -> Array:
    """Compute x · sigmoid(1.702 x), the activation of OpenAI's models."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Block(nn.Module):
    """Pre-norm transformer block; if causal, tokens attend only to themselves and earlier tokens."""

    num_heads: int
    mlp_width: int
    activation: str
    causal: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        y = nn.LayerNorm(NORM_EPSILON, name="norm1")(x)
        q, k, v = (
            nn.Dense(width, name=name)(y).reshape(batch, tokens, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal).reshape(batch, tokens, width)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.Dense(self.mlp_width, name="fc1")(nn.LayerNorm(NORM_EPSILON, name="norm2")(x))
        return x + nn.Dense(width, name="fc2")(ACTIVATIONS[self.activation](y))


def block_names(tower: str) -> dict[str, str]:
    """Return the layer names of blocks in transformers; `tower` is "vision_model" or "text_model"."""
    layers = {"norm{j}": "layer_norm{j}", "fc{j}": "mlp.fc{j}", "out": "self_attn.out_proj"}
    layers |= {name: f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")}
    return {f"blocks_{{i}}/{ours}": f"{tower}.encoder.layers.{{i}}.{name}" for ours, name in layers.items()}
