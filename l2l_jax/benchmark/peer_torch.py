"""The PyTorch side of `l2l_jax.benchmark.peer`: the paper's objective on `transformers`' ViTMAE."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.benchmark.peer_sides import fixed_batch
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError
from l2l_jax.models.vit import sincos_position_table

try:
    import torch
    import transformers
except ImportError as error:
    raise UserError(
        f"{error.name} is missing, which this benchmark compares with: pip install -e '.[test-torch]'"
    ) from error


class Peer:
    """Student, teacher and optimiser of a recipe.

    Args:
      recipe: nested mapping, as for `parse_config`.
      threads: of PyTorch.
    """

    def __init__(self, recipe: dict[str, Any], threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = parse_config(recipe)
        self._config, self._how = config.model, config.unlearn
        self._student = vit_mae(config.model).train()
        self._pixels = {name: _channels_first(self._batch[name]) for name in ("retain", "forget")}
        per_channel = (1, config.model.channels, 1, 1)
        self._mean = torch.tensor(config.model.pixel_mean).reshape(per_channel)
        self._std = torch.tensor(config.model.pixel_std).reshape(per_channel)

    @property
    def _batch(self) -> dict[str, np.ndarray]:
        return fixed_batch(self._config, self._how.batch_size)

    def weights(self, ours: Mapping[str, np.ndarray]) -> None:
        """Start student and teacher from our encoder's parameters, by their path."""
        # A ViTMAEModel that is made from a configuration leaves them zero.
        positions = sincos_position_table(self._config.width, self._config.grid)[None]
        self._student.load_state_dict({**state_dict(ours), POSITIONS: torch.from_numpy(positions)})
        self._teacher = copy.deepcopy(self._student).requires_grad_(False).eval()
        trained = [p for p in self._student.parameters() if p.requires_grad]
        decayed = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        how = self._how
        self._optimizer = torch.optim.AdamW(
            decayed, how.learning_rate, (how.beta1, how.beta2), weight_decay=how.weight_decay, fused=True
        )
        self._average = (
            torch.optim.swa_utils.AveragedModel(
                self._student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(how.ema_decay)
            )
            if how.ema_decay
            else None
        )

    def loss(self) -> float:
        """The loss of `fixed_batch`, with one set of weights for student and teacher."""
        batch = self._batch
        images = {name: _channels_first(batch[name]) for name in ("retain", "forget", "noise")}
        masks = [torch.from_numpy(batch[f"{name}_mask"]) for name in ("retain", "forget")]
        with torch.no_grad():
            return float(self._loss(images, torch.cat(masks)))

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        retain, forget = self._pixels["retain"], self._pixels["forget"]
        std, mean = torch.std_mean(torch.stack([retain, forget]))
        noise = (mean + std * torch.randn_like(forget)).clamp(*self._config.value_range)
        masks = torch.rand(2 * len(retain), self._config.grid**2)
        self._optimizer.zero_grad(set_to_none=True)
        self._loss({"retain": retain, "forget": forget, "noise": noise}, masks).backward()
        if self._how.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._student.parameters(), self._how.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._student)
        return time.perf_counter() - start

    def _loss(self, images: Mapping[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
        student = self._encode(self._student, images["retain"], images["forget"], masks)
        with torch.no_grad():
            teacher = self._encode(self._teacher, images["retain"], images["noise"], masks)
        retain, forget = (student - teacher).square().chunk(2)
        return retain.mean() + self._how.alpha * forget.mean()

    def _encode(self, model: Any, first: Any, second: Any, masks: torch.Tensor) -> torch.Tensor:
        pixels = (torch.cat([first, second]) - self._mean) / self._std
        return model(pixels, noise=masks).last_hidden_state

    def versions(self) -> str:
        """What computed."""
        return f"transformers {transformers.__version__}, PyTorch {torch.__version__}"


def vit_mae(model: Any) -> Any:
    """`transformers`' encoder of the sizes of a `l2l_jax.models.mae.MAE`, with SDPA attention."""
    return transformers.ViTMAEModel(
        transformers.ViTMAEConfig(
            hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=model.num_heads,
            intermediate_size=4 * model.width, layer_norm_eps=1e-6, image_size=model.image_size,
            patch_size=model.patch_size, num_channels=model.channels, mask_ratio=model.mask_ratio,
            attn_implementation="sdpa",
        )
    )  # fmt: skip


def state_dict(ours: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """`ViTMAEModel`'s weights, but for the fixed positions, from our encoder's parameters by path."""
    found = {}
    for path, value in ours.items():
        for name, part in _torch_names(path, value):
            found[name] = torch.from_numpy(np.array(part, copy=True))
    return found


LAYER = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn/proj": "attention.o_proj",
    "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2",
}  # fmt: skip
TOP = {"cls_token": "embeddings.cls_token", "norm": "layernorm"}
POSITIONS = "embeddings.position_embeddings"
PATCH = "embeddings.patch_embeddings.projection"
WEIGHTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _torch_names(path: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Names and values in `ViTMAEModel` of one of our arrays."""
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
        names = (f"{layer}.attention.{one}_proj.{weight}" for one in "qkv")
        return list(zip(names, np.split(value, 3), strict=True))
    return [(f"{layer}.{LAYER[inner]}.{weight}", value)]


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
