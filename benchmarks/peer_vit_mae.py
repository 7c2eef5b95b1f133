"""The MAE encoder in PyTorch for `benchmarks.peer`: `transformers`' ViTMAE."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mae.model import MAE

LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn/proj": "attention.o_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
TOP = {"cls_token": "embeddings.cls_token", "norm": "layernorm"}
POSITIONS = "embeddings.position_embeddings"
PATCH = "embeddings.patch_embeddings.projection"
WEIGHTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


class MAEEncoder:
    """`ViTMAEModel` with the sizes of `model` and SDPA attention."""

    name = f"transformers {transformers.__version__}"

    def __init__(self, model: MAE):
        self._model = model
        self.network = transformers.ViTMAEModel(
            transformers.ViTMAEConfig(
                hidden_size=model.width,
                num_hidden_layers=model.depth,
                num_attention_heads=model.num_heads,
                intermediate_size=4 * model.width,
                layer_norm_eps=1e-6,
                image_size=model.image_size,
                patch_size=model.patch_size,
                num_channels=model.channels,
                mask_ratio=model.mask_ratio,
                attn_implementation="sdpa",
            )
        )
        per_channel = (1, model.channels, 1, 1)
        self._mean = torch.tensor(model.pixel_mean).reshape(per_channel)
        self._std = torch.tensor(model.pixel_std).reshape(per_channel)

    def state_dict(self, ours: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Convert the JAX encoder's parameters by path to the weights of `network`."""
        weights = {
            name: torch.from_numpy(np.array(part, copy=True))
            for path, value in ours.items()
            for name, part in _torch_names(path, value)
        }
        # A ViTMAEModel created from a config initializes positions to zero.
        positions = sincos_position_table(self._model.width, self._model.grid)[None]
        return {**weights, POSITIONS: torch.from_numpy(positions)}

    def draw(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sample the random inputs of T for these images."""
        return {"order": torch.rand(len(images), self._model.grid**2)}

    def inputs(self, images: Mapping[str, torch.Tensor], retain: Any, forget: Any) -> tuple[Any, Any]:
        """Return the inputs of student and teacher, given the random inputs for retain and forget images."""
        order = torch.cat([retain["order"], forget["order"]])
        pairs = ((images["retain"], images[second]) for second in ("forget", "noise"))
        student, teacher = (((torch.cat(pair) - self._mean) / self._std, order) for pair in pairs)
        return student, teacher

    def features(self, network: Any, inputs: Any) -> list[torch.Tensor]:
        """Compute the encoder's features for one result of `inputs`."""
        pixels, order = inputs
        return [network(pixels, noise=order).last_hidden_state]


def _torch_names(path: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the names and values in `ViTMAEModel` for one JAX array."""
    if path == "cls_token":
        return [(TOP[path], value)]
    module, _, leaf = path.rpartition("/")
    weight = WEIGHTS[leaf]
    if module == "patch_embed":
        return [(f"{PATCH}.{weight}", value.transpose(3, 2, 0, 1) if leaf == "kernel" else value)]
    value = value.T
    block, _, inner = module.partition("/")
    if block in TOP:
        return [(f"{TOP[block]}.{weight}", value)]
    layer = f"layers.{block.removeprefix('blocks_')}"
    if inner == "attn/qkv":
        names = (f"{layer}.attention.{letter}_proj.{weight}" for letter in "qkv")
        return list(zip(names, np.split(value, 3), strict=True))
    return [(f"{layer}.{LAYER[inner]}.{weight}", value)]
