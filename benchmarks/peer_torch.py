"""The PyTorch side of `benchmarks.peer`: the paper's objective, AdamW and the moving average."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.peer_sides import fixed_batch
from l2l_jax.config import parse_config
from l2l_jax.errors import UserError

try:
    import torch

    from benchmarks.peer_unet import PaletteEncoder
    from benchmarks.peer_vit_mae import MAEEncoder
except ImportError as error:
    raise UserError(
        f"This benchmark needs {error.name}, which is missing: pip install -e '.[test-torch]'"
    ) from error

ENCODERS = {"mae": MAEEncoder, "palette": PaletteEncoder}
"""Encoders by `config.model.family`. An encoder has a `network` and a `name`. It converts JAX weights,
samples the random inputs of T, applies T to images, and computes the features of the result."""


class Peer:
    """Student, teacher and optimizer of a config in PyTorch with `threads` threads."""

    def __init__(self, raw: dict[str, Any], threads: int):
        torch.set_num_threads(threads)
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.set_default_device("cuda")
        torch.manual_seed(0)
        config = parse_config(raw)
        self._config, self._cfg = config.model, config.unlearn
        self._encoder = ENCODERS[config.family](config.model)
        self._student = self._encoder.network.train()
        if self._on_gpu:
            self._student = self._student.to(memory_format=torch.channels_last)
        device = torch.get_default_device()
        dtype = getattr(torch, config.model.dtype)
        self._precision = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
        self._batch = {
            name: {key: _channels_first(value).to(device) for key, value in arrays.items()}
            for name, arrays in fixed_batch(config.model, self._cfg.batch_size).items()
        }

    def weights(self, ours: Mapping[str, np.ndarray]) -> None:
        """Initialize student and teacher from the JAX encoder's parameters by path."""
        self._student.load_state_dict(self._encoder.state_dict(ours))
        self._teacher = copy.deepcopy(self._student).requires_grad_(False).eval()
        self._networks = [self._student, self._teacher]
        if self._on_gpu:
            self._networks = [torch.compile(network) for network in self._networks]
        trained = [p for p in self._student.parameters() if p.requires_grad]
        decayed = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        cfg = self._cfg
        self._optimizer = torch.optim.AdamW(
            decayed, cfg.learning_rate, (cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay, fused=True
        )
        self._average = (
            torch.optim.swa_utils.AveragedModel(
                self._student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(cfg.ema_decay)
            )
            if cfg.ema_decay
            else None
        )

    def loss(self) -> float:
        """Return the loss of `fixed_batch`, with the same weights for student and teacher."""
        with torch.no_grad():
            return float(self._loss(**self._batch))

    def step(self) -> float:
        """Run one step and return its seconds."""
        start = time.perf_counter()
        retain, forget = (self._batch["images"][name] for name in ("retain", "forget"))
        std, mean = torch.std_mean(torch.stack([retain, forget]))
        noise = (mean + std * torch.randn_like(forget)).clamp(*self._config.value_range)
        images = {"retain": retain, "forget": forget, "noise": noise}
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(images, self._encoder.draw(retain), self._encoder.draw(forget)).backward()
        if self._cfg.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._student.parameters(), self._cfg.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._student)
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _loss(self, images: Mapping[str, Any], retain: Any, forget: Any) -> torch.Tensor:
        student_inputs, teacher_inputs = self._encoder.inputs(images, retain, forget)
        student_network, teacher_network = self._networks
        with self._precision:
            student = self._encoder.features(student_network, student_inputs)
            with torch.no_grad():
                teacher = self._encoder.features(teacher_network, teacher_inputs)
        halves = [(s.float() - t.float()).square().chunk(2) for s, t in zip(student, teacher, strict=True)]
        return sum(first.mean() + self._cfg.alpha * second.mean() for first, second in halves)

    def versions(self) -> str:
        """Return the versions of the packages."""
        return f"{self._encoder.name}, PyTorch {torch.__version__}"


def _channels_first(array: np.ndarray) -> torch.Tensor:
    moved = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    return torch.from_numpy(np.ascontiguousarray(moved))
