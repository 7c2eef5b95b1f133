"""Reading checkpoint files and folders: which arrays they hold, under which names.

Files count as hostile until they prove otherwise: nothing in them is executed, and whatever is wrong with one
becomes a `UserError`. Arrays are read later, one by one where the format allows it.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import safetensors

from l2l_jax.errors import UserError
from l2l_jax.models.mapping import FLOATS, StoredArray, listing

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar")
SAFETENSORS_SUFFIX = ".safetensors"
SUFFIXES = (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX)
# Names under which checkpoints keep their state dict
PLAIN = ("state_dict", "model", "network", "net", "params", "module", "shadow")
# Names under which checkpoints keep an exponential moving average (EMA) of the weights
AVERAGED = ("model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "ema")
# Prefixes of keys from wrappers: data parallelism, `torch.compile`, Lightning, DeepSpeed
PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "model.", "state_dict.", "network.")
INNER_WRAPPERS = re.compile(
    r"\b(_checkpoint_wrapped_module|_orig_mod|_fsdp_wrapped_module|_fpw_module|(?<=\.)module)\."
)
"""Parts of keys from wrappers of single blocks."""
# Keys of networks and counters that only the training needs
TRAINING_ONLY = re.compile(r"(perceptual(_loss)?|lpips|loss|criterion|discriminator|disc|n_averaged)\b.*")
# Names under which checkpoints keep the arguments of the training program
ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg")

HUB_WEIGHTS = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
"""Names of the weights in a Hugging Face folder; an index names shards."""

# File that makes a folder a pipeline of diffusers: it names the components, each in a folder of its own
PIPELINE = "model_index.json"
EMBEDDED = ("unet", "vae", "text_encoder", "text_encoder_2")  # components whose weights are read
# Names of a component's weights, without suffix
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# Before it, crafted files could get past `weights_only=True` (CVE-2025-32434, CVE-2026-24747)
OLDEST_TORCH = (2, 10)
StateDict = dict[str, StoredArray]
_EXPECTED = f"expected are {', '.join(FLOATS)}"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    path: pathlib.Path
    kind: str  # format, in words
    copies: tuple[str, ...]  # names of the wrappers of its state dicts ("" for none)
    copy: str  # the one that was taken
    state_dict: Mapping[str, Any]  # arrays, without common prefixes
    origin: dict[str, Any]  # see `l2l_jax.models.mapping.Origin`
    files: tuple[pathlib.Path, ...]  # that hold the arrays
    left_out: tuple[str, ...] = ()  # keys of networks that only the training needs
    vqgan: "Checkpoint | None" = None  # a second file, the arrays of which are part of `state_dict`

    def sha256(self) -> str:
        """Return the SHA-256 of the file, or that over the digests of several."""
        digests = [sha256(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return JSON-able facts: name, SHA-256 and format of the file, and the copy that was taken."""
        facts = {"file": self.path.name, "sha256": self.sha256(), "format": self.kind}
        facts |= {k: self.origin[k] for k in ("config", "preprocessor", "pipeline") if k in self.origin}
        if self.copy:
            facts["copy"] = self.copy
        if self.left_out:
            facts["left_out"] = f"{len(self.left_out)} arrays: {listing(self.left_out, 3)}"
        return facts | ({"vqgan": self.vqgan.facts()} if self.vqgan else {})


def read_checkpoint(path: pathlib.Path, *, ema: bool = False) -> Checkpoint:
    """Find out what a checkpoint holds.

    Args:
      path: A `.safetensors` file, a PyTorch file, which needs PyTorch, a Hugging Face folder or a pipeline.
      ema: Take the moving average of the weights; otherwise the plain ones, if there are any.

    Raises:
      UserError: No such file, an unknown suffix, a damaged or hostile file, no arrays in it, no EMA, or
        PyTorch is needed and missing.
    """
    if (path / PIPELINE).is_file():
        if ema:
            raise UserError(f"{path} is a pipeline, which holds one copy of the weights: leave out --ema.")
        return _read_pipeline(path)
    is_folder = path.is_dir()
    files = _weight_files(path, HUB_WEIGHTS) if is_folder else (path,)
    if is_folder and not (files and (path / "config.json").is_file()):
        raise UserError(
            f"{path} is a folder, but not of a model: expected model.json (saved here), config.json and "
            f"{HUB_WEIGHTS[0]} (Hugging Face), or {PIPELINE} (diffusers)."
        )
    kind, content = "", dict[Any, Any]()
    for file in files:
        kind, more = _read_file(file)
        content |= more
    copies, left_out = find_state_dicts(content)
    if not copies:
        entries = f" Its entries: {listing(sorted(map(str, content)), 5)}." if content else ""
        raise UserError(f"{path} holds no weights: there is no array at the top or in a wrapper.{entries}")
    for state_dict in copies.values():
        _check_sizes(path, state_dict, files)
    averaged = [name for name in copies if any(part in AVERAGED for part in name.split("."))]
    if ema and not averaged:
        raise UserError(
            f"{path} holds no EMA copy under {', '.join(AVERAGED)}. Palette keeps its EMA in a file of its "
            "own (*_Network_ema.pth): give that file, without --ema."
        )
    plain = [name for name in copies if name not in averaged]
    copy = averaged[0] if ema or not plain else plain[0]
    origin = {"file": path.name, "args": _arguments(content)}
    origin |= _neighbors(path if is_folder else path.parent)
    kind = "Hugging Face folder" if is_folder else kind
    return Checkpoint(path, kind, tuple(copies), copy, copies[copy], origin, files, left_out)


def _check_sizes(path: pathlib.Path, state_dict: StateDict, files: Sequence[pathlib.Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    for key, array in state_dict.items():
        if array.nbytes > size:  # strides of 0 make one stored number look like any array
            raise UserError(f"{path} is damaged or forged: {key} is larger than the file.")


def _read_pipeline(folder: pathlib.Path) -> Checkpoint:
    """Read a pipeline of diffusers; keys begin with the names of components."""
    components: dict[str, Any] = {}
    state_dict: StateDict = {}
    files: list[pathlib.Path] = []
    for name in _json(folder / PIPELINE):
        for config in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (folder / name / config).is_file():
                components[name] = _json(folder / name / config)
    for name in EMBEDDED:
        if name in components:
            found = component_weights(folder / name)
            files += found.files
            state_dict |= {f"{name}.{key}": array for key, array in found.state_dict.items()}
    origin = {"file": folder.name, "args": {}, "pipeline": str(folder.resolve()), "components": components}
    return Checkpoint(folder, "diffusers pipeline", ("",), "", state_dict, origin, tuple(files))


def component_weights(folder: pathlib.Path) -> Checkpoint:
    """Read the weights of one component of a pipeline, in full precision if there are several files."""
    names = []
    for ending in ("safetensors", "bin"):
        for variant in ("", "fp16."):
            ends = (f"{variant}{ending}", f"{ending}.index.{variant}json", f"{variant}{ending}.index.json")
            names += [f"{stem}.{end}" for stem in STEMS for end in ends]
    files = _weight_files(folder, names)
    content = {key: value for file in files for key, value in _read_file(file)[1].items()}
    state_dict = {key: value for key, value in content.items() if isinstance(value, StoredArray)}
    if not state_dict:
        raise UserError(f"{folder} holds no weights; expected {STEMS[0]}.safetensors, for example.")
    _check_sizes(folder, state_dict, files)
    return Checkpoint(folder, "component", ("",), "", state_dict, {"file": folder.name}, files)


def _arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the arguments of the training program, as far as a checkpoint keeps them."""
    found: dict[str, Any] = {}
    for name in ARGUMENTS:
        args = content.get(name)
        args = vars(args) if isinstance(args, argparse.Namespace) else args
        found |= args if isinstance(args, Mapping) else {}
    return found


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: pathlib.Path) -> tuple[str, dict[Any, Any]]:
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}.")
    try:
        if path.name.endswith(TORCH_SUFFIXES):
            return _read_torch(path)
        if path.suffix == SAFETENSORS_SUFFIX:
            return "safetensors", dict(_read_safetensors(path))
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Change its permissions.") from error
    raise UserError(f"{path}: weights are read from {', '.join(SUFFIXES)} files.")


def _weight_files(folder: pathlib.Path, names: Sequence[str]) -> tuple[pathlib.Path, ...]:
    """Return the first file of these names, or the shards that it names if it is an index."""
    index = next((folder / name for name in names if (folder / name).is_file()), None)
    if index is None or index.suffix != ".json":
        return () if index is None else (index,)
    shards = _json(index).get("weight_map")
    if not isinstance(shards, Mapping) or not all(isinstance(file, str) for file in shards.values()):
        raise UserError(f"{index} is damaged: it should name the file of each array.")
    for file in shards.values():
        if pathlib.PurePath(file).name != file:
            raise UserError(f"{index} names a file outside its folder: {file}.")
    return tuple(index.parent / file for file in sorted(set(shards.values())))


def _neighbors(folder: pathlib.Path) -> dict[str, Any]:
    """Read the JSON files of a Hugging Face folder; a `config.json` of something else has no "model_type"."""
    found = {}
    for name, file in (("config", "config.json"), ("preprocessor", "preprocessor_config.json")):
        if (folder / file).is_file():
            found[name] = _json(folder / file)
    return found if "model_type" in found.get("config", {}) else {}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object.")
    return value


def find_state_dicts(content: Mapping, depth: int = 4) -> tuple[dict[str, StateDict], tuple[str, ...]]:
    """Return the state dicts in a checkpoint, and the keys that only training needs, which are left out."""
    found: dict[str, StateDict] = {}
    left_out: dict[str, None] = {}
    for wrapper in (*PLAIN, *AVERAGED):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and depth:
            copies, keys = find_state_dicts(inner, depth - 1)
            found |= {f"{wrapper}.{name}".rstrip("."): state_dict for name, state_dict in copies.items()}
            left_out |= dict.fromkeys(keys)
    if found:
        return found, tuple(left_out)
    arrays = {str(key): value for key, value in content.items() if isinstance(value, StoredArray)}
    for wrapper in AVERAGED:  # files without nesting keep the copy behind a prefix
        prefixed = {key: arrays.pop(key) for key in list(arrays) if key.startswith(f"{wrapper}.")}
        found[wrapper] = {key.removeprefix(f"{wrapper}."): value for key, value in prefixed.items()}
    for name, state_dict in {"": arrays, **found}.items():
        found[name], extra = _without_wrappers(state_dict)
        left_out |= dict.fromkeys(extra)
    return {name: found[name] for name in ("", *AVERAGED) if found[name]}, tuple(left_out)


def _without_wrappers(state_dict: StateDict) -> tuple[StateDict, list[str]]:
    """Remove what wrappers put into keys, and networks that only training needs."""
    state_dict = {INNER_WRAPPERS.sub("", key): value for key, value in state_dict.items()}
    left_out = [key for key in state_dict if TRAINING_ONLY.fullmatch(key)]
    if len(left_out) == len(state_dict):
        left_out = []
    state_dict = {key: value for key, value in state_dict.items() if key not in set(left_out)}
    for prefix in PREFIXES:
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            bare = {key.removeprefix(prefix): value for key, value in state_dict.items()}
            state_dict, more = _without_wrappers(bare)
            return state_dict, [*left_out, *more]
    return state_dict, left_out


_DTYPES = dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", U8="uint8", BOOL="bool")
_DTYPES |= dict(I64="int64", I32="int32", I16="int16", I8="int8")


def _read_safetensors(path: pathlib.Path) -> StateDict:
    def reader(key: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            # Opened anew for every array: pages of the file that were read are given back at once.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(key)

        return read

    content = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict: it cannot be iterated over)
                entry = file.get_slice(key)
                dtype = _DTYPES.get(entry.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {key} is {entry.get_dtype()}; {_EXPECTED}.")
                number_format = FLOATS.get(dtype) or np.dtype(dtype)
                content[key] = StoredArray(tuple(entry.get_shape()), number_format, reader(key))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}).") from error
    return content


def import_torch() -> ModuleType:
    """Return PyTorch."""
    try:
        import torch  # an optional extra
    except ImportError as error:
        raise UserError(
            "Reading and writing PyTorch files needs PyTorch: pip install torch (its build for "
            "CPU is enough). Files that end in .safetensors need no PyTorch."
        ) from error
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise UserError(
            f"PyTorch {torch.__version__} is not safe with untrusted files: crafted ones execute code in "
            f"versions before {wanted}. Run: pip install -U torch"
        )
    return torch


def _read_torch(path: pathlib.Path) -> tuple[str, dict[Any, Any]]:
    """Read a PyTorch file; values of today's format (zip) stay on the disk until they are read."""
    torch = import_torch()
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _check_zip(path)
    try:
        # Training programs keep their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # hostile and damaged files raise whatever they like
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path} holds one {kind}, not a state dict: named tensors are expected.")
    kind = "PyTorch, zip format" if zipped else "PyTorch, legacy format"
    return kind, _stored(torch, path, content, depth=5)


def _check_zip(path: pathlib.Path) -> None:
    """Refuse compressed archives: PyTorch stores its arrays as they are."""
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
    """Return the message for what `torch.load` raised."""
    text = " ".join(str(error).split())
    name = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and name:
        return (
            f"{path} is refused: it holds a Python object ({name[1]}) besides tensors, and loading such "
            "objects can execute code. If you trust where it comes from, save its state dict alone with the "
            "program that wrote it: torch.save(model.state_dict(), 'weights.pth')."
        )
    reason = re.sub(r"^.*?WeightsUnpickler error:", "", text).strip()
    shown = f"{reason[:160]}…" if len(reason) > 160 else reason
    kind = type(error).__name__
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged ({kind}: {shown})."


def _stored(torch: ModuleType, path: pathlib.Path, content: Mapping, depth: int) -> dict[Any, Any]:
    """Keep mappings, tensors as `StoredArray`, and the arguments of the training program."""
    found: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[key] = _stored_tensor(torch, path, key, value)
        elif isinstance(value, Mapping) and depth:
            found[key] = dict(value) if key in ARGUMENTS else _stored(torch, path, value, depth - 1)
        elif isinstance(value, argparse.Namespace):
            found[key] = value
    return found


def _stored_tensor(torch: ModuleType, path: pathlib.Path, key: Any, tensor: Any) -> StoredArray:
    name = str(tensor.dtype).removeprefix("torch.")
    others = ("float64", "int64", "int32", "int16", "int8", "uint8", "bool")
    dtype = FLOATS.get(name) or (np.dtype(name) if name in others else None)
    if tensor.device.type != "cpu":
        raise UserError(
            f"{path}: {key} has no values (device {tensor.device}): save the model's real weights."
        )
    if dtype is None or tensor.layout is not torch.strided:
        raise UserError(f"{path}: {key} is a {name} tensor ({tensor.layout}); {_EXPECTED}.")
    tensor = tensor.detach().resolve_neg()

    def read() -> np.ndarray:
        if name == "bfloat16":  # NumPy knows it as an extension, which PyTorch does not hand over
            return tensor.view(torch.int16).numpy().view(dtype)
        return tensor.numpy()

    return StoredArray(tuple(tensor.shape), dtype, read)
