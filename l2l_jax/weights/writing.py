"""Writing checkpoint files and Hugging Face folders; they are visible only when they are complete."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.utils.io import atomic_file, atomic_folder
from l2l_jax.weights.reading import SAFETENSORS_SUFFIX, SUFFIXES, TORCH_SUFFIXES, import_torch


def check_output(path: pathlib.Path, folders: bool = False) -> None:
    """Raise a UserError for an output that exists or does not have the suffix of a checkpoint."""
    if path.exists():
        raise UserError(f"{path} exists. Choose another --output, or delete it first.")
    if path.name.endswith(TORCH_SUFFIXES):
        import_torch()
    elif path.suffix != SAFETENSORS_SUFFIX and not (folders and not path.suffix):
        raise UserError(f"--output {path}: its name must end in {', '.join(SUFFIXES)}.")


def write_checkpoint(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str = "") -> None:
    """Write contiguous arrays, in PyTorch files as `{wrapper: state_dict}`; see `check_output` for errors."""
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        if path.suffix == SAFETENSORS_SUFFIX:
            _write_safetensors(unfinished, state_dict)
        else:
            _write_torch(unfinished, state_dict, wrapper)


def write_folder(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a folder of JSON objects (`.json`) and state dicts (`.safetensors`) by file name."""
    with atomic_folder(path) as unfinished:
        for name, value in content.items():
            if name.endswith(SAFETENSORS_SUFFIX):
                _write_safetensors(unfinished / name, value)
            else:
                (unfinished / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _write_safetensors(path: pathlib.Path, state_dict: Mapping[str, np.ndarray]) -> None:
    path.touch()
    mode = path.stat().st_mode
    # transformers refuses files that do not say "pt" here.
    safetensors.numpy.save_file(dict(state_dict), path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors makes files that nobody else can read


def _write_torch(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str) -> None:
    torch = import_torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
        return torch.tensor(array)

    tensors = {key: tensor(array) for key, array in state_dict.items()}
    torch.save({wrapper: tensors} if wrapper else tensors, path)
