"""Arrays computed by the original PyTorch implementations: see tests/reference/README.md."""

import json
import math
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "reference"


class Case:
    """One reference case: `config`, `kept`, arrays by name, and the state dict by the rule."""

    def __init__(self, name: str):
        self.description = json.loads((FOLDER / f"{name}.json").read_text())
        self.config = self.description["config"]
        self._arrays = np.load(FOLDER / f"{name}.npz")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def state_dict(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return the weights; `prefix` is "teacher:" for those of the teacher."""
        keys = self.description.get("state_dict") or self.description["keys"]
        kept = self.description.get("kept", [])
        return {key: self._arrays[key] if key in kept else fill(prefix + key, size) for key, size, _ in keys}


def fill(key: str, shape: list[int]) -> np.ndarray:
    """Return the value of the parameter `key` according to the reference rule (float32)."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    n = rng.standard_normal(shape, dtype=np.float32)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(n)
    if n.ndim >= 2:
        return n / math.sqrt(math.prod(shape[1:]))
    return np.float32(1) + np.float32(0.1) * n if key.endswith(".weight") else np.float32(0.1) * n


def nhwc(images: np.ndarray) -> np.ndarray:
    """Transpose `[batch, channel, height, width]` to `[batch, height, width, channel]`."""
    return np.moveaxis(images, 1, -1)
