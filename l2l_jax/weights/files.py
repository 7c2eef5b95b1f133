"""Reading and writing checkpoint files: which arrays lie in a file, under which names.

Files are taken for hostile until they prove otherwise: nothing in them is executed, and whatever is
wrong with one becomes a `UserError`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from l2l_jax.errors import UserError
from l2l_jax.weights import torch_files
from l2l_jax.weights.arrays import FLOATS_WANTED, StateDict, StoredArray

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar")
SAFETENSORS_SUFFIX = ".safetensors"
PLAIN = ("state_dict", "model", "network", "net", "params", "module")
"""Names under which checkpoints keep their state dict."""
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema")
"""Names under which checkpoints keep an exponential moving average (EMA) of the weights."""
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "network.")
"""What wrappers (data parallelism, `torch.compile`, Lightning) put before every key."""


@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """What lies in a file.

    Attributes:
      path: the file.
      kind: its format, in words.
      copies: state dicts by the name of their wrapper ("" for none), without common prefixes.
    """

    path: pathlib.Path
    kind: str
    copies: dict[str, StateDict]

    @property
    def plain(self) -> str | None:
        """Name of the weights that are not a moving average."""
        return next((name for name in self.copies if not _is_averaged(name)), None)

    @property
    def averaged(self) -> str | None:
        """Name of the exponential moving average (EMA) of the weights."""
        return next((name for name in self.copies if _is_averaged(name)), None)

    def choose(self, ema: bool = False) -> str:
        """Name of the copy to use: the plain weights if there are any, or with `ema` their EMA.

        Raises:
          UserError: an EMA is asked for and there is none.
        """
        if ema and self.averaged is None:
            raise UserError(
                f"{self.path} holds no EMA copy under {', '.join(AVERAGED)}. Palette keeps its EMA in "
                "a file of its own (*_Network_ema.pth): give that file, without --ema."
            )
        name = self.averaged if ema or self.plain is None else self.plain
        return name or ""


def _is_averaged(name: str) -> bool:
    return any(part in AVERAGED for part in name.split("."))


def open_checkpoint(path: pathlib.Path) -> CheckpointFile:
    """Find out what a file holds; arrays are read later, one by one where the format allows it.

    Args:
      path: a `.safetensors` file, or a PyTorch file (`.pth`, `.pt`, `.ckpt`, `.bin`), which needs
        PyTorch.

    Raises:
      UserError: no such file, an unknown suffix, a damaged or hostile file, no arrays in it, or
        PyTorch is needed and missing.
    """
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}.")
    if path.name.endswith(TORCH_SUFFIXES):
        kind, content = torch_files.load(path)
    elif path.suffix == SAFETENSORS_SUFFIX:
        kind, content = "safetensors", _read_safetensors(path)
    else:
        raise UserError(f"{path}: weights are read from {', '.join(_suffixes())} files.")
    copies = find_state_dicts(content)
    if not copies:
        raise UserError(f"{path} holds no weights: no array lies in it, at the top or in a wrapper.")
    size = path.stat().st_size
    for state_dict in copies.values():
        for key, array in state_dict.items():
            if array.nbytes > size:  # strides of 0 make one stored number look like any array
                raise UserError(f"{path} is damaged or forged: {key} is larger than the file.")
    return CheckpointFile(path, kind, copies)


def find_state_dicts(content: Mapping[Any, Any], depth: int = 4) -> dict[str, StateDict]:
    """The state dicts in a checkpoint's content, by the names of their wrappers, joined with dots.

    Args:
      content: nested mappings; whatever is neither a mapping nor a `StoredArray` is passed over, and
        so are mappings of other names than `PLAIN` and `AVERAGED`, such as an optimiser's.
      depth: how many mappings deep to look.
    """
    found: dict[str, StateDict] = {}
    for wrapper in (*PLAIN, *AVERAGED):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and depth:
            for name, state_dict in find_state_dicts(inner, depth - 1).items():
                found[f"{wrapper}.{name}".rstrip(".")] = state_dict
    if found:
        return found
    arrays = {str(key): value for key, value in content.items() if isinstance(value, StoredArray)}
    for wrapper in AVERAGED:  # files without nesting keep the copy behind a prefix
        prefixed = {k: arrays.pop(k) for k in list(arrays) if k.startswith(f"{wrapper}.")}
        if prefixed:
            found[wrapper] = {k.removeprefix(f"{wrapper}."): v for k, v in prefixed.items()}
    if arrays:
        found = {"": arrays} | found
    return {name: _without_prefixes(state_dict) for name, state_dict in found.items()}


def _without_prefixes(state_dict: StateDict) -> StateDict:
    while True:
        first = next(iter(state_dict))
        prefix = next((p for p in PREFIXES if first.startswith(p)), None)
        if prefix is None or not all(key.startswith(prefix) for key in state_dict):
            return state_dict
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}


_SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


def _read_safetensors(path: pathlib.Path) -> dict[str, StoredArray]:
    def reader(key):
        def read():
            # Opened anew for every array: pages of the file that were read are given back at once.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(key)

        return read

    content = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict: it cannot be iterated over)
                entry = file.get_slice(key)
                dtype = _SAFETENSORS_DTYPES.get(entry.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {key} is {entry.get_dtype()}; {FLOATS_WANTED}.")
                content[key] = StoredArray(tuple(entry.get_shape()), np.dtype(dtype), reader(key))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}).") from error
    return content


def _suffixes() -> tuple[str, ...]:
    return (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX)


def check_output(path: pathlib.Path) -> None:
    """Refuse an output file before any work is done for it.

    Raises:
      UserError: it exists, or its suffix is not a checkpoint's, or PyTorch is needed and missing.
    """
    if path.exists():
        raise UserError(f"{path} exists. Choose another --output, or delete it first.")
    if path.name.endswith(TORCH_SUFFIXES):
        torch_files.import_torch()
    elif path.suffix != SAFETENSORS_SUFFIX:
        raise UserError(f"--output {path}: its name must end in {', '.join(_suffixes())}.")


def write_checkpoint(path: pathlib.Path, state_dict: Mapping[str, np.ndarray], wrapper: str = "") -> None:
    """Write a state dict; the file appears under its name only when it is complete.

    Args:
      path: where to, with a suffix that `open_checkpoint` knows; its folder is made.
      state_dict: contiguous arrays by key.
      wrapper: PyTorch files hold `{wrapper: state_dict}`, or the state dict itself where it is "".
        safetensors has no wrappers.

    Raises:
      UserError: see `check_output`.
    """
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        if path.suffix == SAFETENSORS_SUFFIX:
            # transformers refuses files that do not say "pt" here.
            safetensors.numpy.save_file(dict(state_dict), unfinished, metadata={"format": "pt"})
            unfinished.chmod(mode)  # safetensors makes files that nobody else can read
        else:
            torch_files.save(unfinished, state_dict, wrapper)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
