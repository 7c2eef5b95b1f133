"""PyTorch files, read without executing anything from them. The only module that imports PyTorch."""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.weights.arrays import FLOATS, FLOATS_WANTED, StoredArray

OLDEST = (2, 10)
"""Before it, crafted files could get past `weights_only=True` (CVE-2025-32434, CVE-2026-24747)."""

ZIP_MAGIC = b"PK\x03\x04"


_DTYPES = FLOATS | {
    name: np.dtype(name) for name in ("float64", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def import_torch() -> ModuleType:
    """PyTorch.

    Raises:
      UserError: it is not installed, or too old to be given a file that may be hostile.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "Reading and writing PyTorch files needs PyTorch: pip install 'l2l_jax[torch]' (its build "
            "for CPU is enough). Files that end in .safetensors need no PyTorch."
        ) from error
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UserError(
            f"PyTorch {torch.__version__} is not safe with untrusted files: crafted ones execute "
            f"code in versions before {wanted}. Run: pip install -U 'l2l_jax[torch]'"
        )
    return torch


def load(path: pathlib.Path) -> tuple[str, dict[Any, Any]]:
    """The format of a PyTorch file in words, and its content: mappings with `StoredArray` in them.

    Values of files in today's format (zip) stay on the disk until they are read.

    Raises:
      UserError: the file is damaged, holds other Python objects than tensors and plain data, or
        PyTorch is missing.
    """
    torch = import_torch()
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if zipped:
        _check_zip(path)
    try:
        # Training scripts keep their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # hostile and damaged files raise whatever they like
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path} holds one {kind}, not a state dict: named tensors are expected.")
    kind = "PyTorch, zip format" if zipped else "PyTorch, legacy format"
    return kind, _stored(torch, path, content, depth=5)


def _check_zip(path: pathlib.Path) -> None:
    """PyTorch stores its arrays uncompressed: whatever would unpack to more is not its file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(
            f"{path} is truncated or damaged: the end of the archive is missing. Download it again."
        ) from error
    unpacked = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or unpacked > path.stat().st_size:
        raise UserError(f"{path} was not written by torch.save: its arrays are compressed.")


def _explain(path: pathlib.Path, error: Exception) -> str:
    """The sentence for what `torch.load` raised."""
    text = " ".join(str(error).split())
    name = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and name:
        return (
            f"{path} is refused: it holds a Python object ({name[1]}) beside tensors, and loading such "
            "objects can execute code. If you trust where it comes from, save its state dict alone with "
            "the program that wrote it: torch.save(model.state_dict(), 'weights.pth')."
        )
    reason = re.sub(r"^.*?WeightsUnpickler error:", "", text).strip()
    shown = f"{reason[:160]}…" if len(reason) > 160 else reason
    kind = type(error).__name__
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged ({kind}: {shown})."


def _stored(torch: ModuleType, path: pathlib.Path, content: Mapping, depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[key] = _stored_tensor(torch, path, key, value)
        elif isinstance(value, Mapping) and depth:
            found[key] = _stored(torch, path, value, depth - 1)
    return found


def _stored_tensor(torch: ModuleType, path: pathlib.Path, key: Any, tensor: Any) -> StoredArray:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = _DTYPES.get(name)
    if dtype is None or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise UserError(f"{path}: {key} is a {name} tensor ({tensor.layout}); {FLOATS_WANTED}.")
    tensor = tensor.detach().resolve_neg()

    def read() -> np.ndarray:
        if name == "bfloat16":  # NumPy knows it as an extension, which PyTorch does not hand over
            return tensor.view(torch.int16).numpy().view(dtype)
        return tensor.numpy()

    return StoredArray(tuple(tensor.shape), dtype, read)


def save(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str) -> None:
    """Write `{wrapper: state_dict}`, or `state_dict` itself if `wrapper` is empty."""
    torch = import_torch()

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
        return torch.tensor(array)

    tensors = {key: tensor(array) for key, array in state_dict.items()}
    torch.save({wrapper: tensors} if wrapper else tensors, path)
