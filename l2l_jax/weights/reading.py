"""Reading of checkpoint files and folders.

Files are treated as untrusted: no code in them is executed, and all problems raise a `UserError`. Arrays are
read lazily, one at a time if the format allows it.
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
# Names under which checkpoints store their state dict
PLAIN = ("state_dict", "model", "network", "net", "params", "module", "shadow")
# Names under which checkpoints store an exponential moving average (EMA) of the weights
AVERAGED = ("model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "ema")
# Key prefixes added by wrappers: data parallelism, `torch.compile`, Lightning, DeepSpeed
PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "model.", "state_dict.", "network.")
INNER_WRAPPERS = re.compile(
    r"\b(_checkpoint_wrapped_module|_orig_mod|_fsdp_wrapped_module|_fpw_module|(?<=\.)module)\."
)
"""Pattern of key components added by wrappers of single blocks."""
# Keys of networks and counters that are needed only for training
TRAINING_ONLY = re.compile(r"(perceptual(_loss)?|lpips|loss|criterion|discriminator|disc|n_averaged)\b.*")
# Names under which checkpoints store the arguments of the training program
ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg")

HUB_WEIGHTS = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
"""Names of the weights in a Hugging Face folder; an index lists shards."""

# File that identifies a diffusers pipeline: it lists the components, each stored in its own folder
PIPELINE = "model_index.json"
EMBEDDED = ("unet", "vae", "text_encoder", "text_encoder_2")  # components whose weights are read
# Names of a component's weights, without suffix
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# In earlier versions, crafted files can bypass `weights_only=True` (CVE-2025-32434, CVE-2026-24747)
OLDEST_TORCH = (2, 10)
StateDict = dict[str, StoredArray]
_EXPECTED = f"expected {', '.join(FLOATS)}"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    path: pathlib.Path
    kind: str  # description of the format
    copies: tuple[str, ...]  # names of the wrappers of its state dicts ("" for none)
    copy: str  # name of the selected copy
    state_dict: Mapping[str, Any]  # arrays, without common prefixes
    origin: dict[str, Any]  # see `l2l_jax.models.mapping.Origin`
    files: tuple[pathlib.Path, ...]  # files that hold the arrays
    left_out: tuple[str, ...] = ()  # ignored keys of networks that are needed only for training
    vqgan: "Checkpoint | None" = None  # a second file, whose arrays are part of `state_dict`

    def sha256(self) -> str:
        """Return the SHA-256 of the file or, for several files, of their digests."""
        digests = [sha256(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return JSON-serializable metadata: name, SHA-256 and format of the file, and the selected copy."""
        facts = {"file": self.path.name, "sha256": self.sha256(), "format": self.kind}
        facts |= {k: self.origin[k] for k in ("config", "preprocessor", "pipeline") if k in self.origin}
        if self.copy:
            facts["copy"] = self.copy
        if self.left_out:
            facts["left_out"] = f"{len(self.left_out)} arrays: {listing(self.left_out, 3)}"
        return facts | ({"vqgan": self.vqgan.facts()} if self.vqgan else {})


def read_checkpoint(path: pathlib.Path, *, ema: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
      path: A `.safetensors` file, a PyTorch file (requires PyTorch), a Hugging Face folder or a pipeline.
      ema: Whether to use the exponential moving average of the weights; by default, the plain weights are
        used if available.

    Raises:
      UserError: The file does not exist, has an unknown suffix, is damaged or malicious, or holds no arrays
        or no EMA; or PyTorch is required and missing.
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
        kind, entries = _read_file(file)
        content |= entries
    copies, left_out = find_state_dicts(content)
    if not copies:
        keys = f" Its entries: {listing(sorted(map(str, content)), 5)}." if content else ""
        raise UserError(f"{path} holds no weights: there is no array at the top or in a wrapper.{keys}")
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
        if array.nbytes > size:  # with strides of 0, one stored number can appear as a large array
            raise UserError(f"{path} is damaged or forged: {key} is larger than the file.")


def _read_pipeline(folder: pathlib.Path) -> Checkpoint:
    """Read a diffusers pipeline; keys are prefixed by the component name."""
    components: dict[str, Any] = {}
    state_dict: StateDict = {}
    files: list[pathlib.Path] = []
    for name in _json(folder / PIPELINE):
        for config in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (folder / name / config).is_file():
                components[name] = _json(folder / name / config)
    for name in EMBEDDED:
        if name in components:
            weights = component_weights(folder / name)
            files += weights.files
            state_dict |= {f"{name}.{key}": array for key, array in weights.state_dict.items()}
    origin = {"file": folder.name, "args": {}, "pipeline": str(folder.resolve()), "components": components}
    return Checkpoint(folder, "diffusers pipeline", ("",), "", state_dict, origin, tuple(files))


def component_weights(folder: pathlib.Path) -> Checkpoint:
    """Read the weights of one component of a pipeline, in full precision if available."""
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
    """Return the arguments of the training program that a checkpoint stores, if any."""
    arguments: dict[str, Any] = {}
    for name in ARGUMENTS:
        args = content.get(name)
        args = vars(args) if isinstance(args, argparse.Namespace) else args
        arguments |= args if isinstance(args, Mapping) else {}
    return arguments


def sha256(path: pathlib.Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
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
    """Return the first existing file of these names, or the shards that it lists if it is an index."""
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
    """Read the JSON files of a Hugging Face folder; ignore them if `config.json` has no "model_type"."""
    contents = {}
    for name, file in (("config", "config.json"), ("preprocessor", "preprocessor_config.json")):
        if (folder / file).is_file():
            contents[name] = _json(folder / file)
    return contents if "model_type" in contents.get("config", {}) else {}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object.")
    return value


def find_state_dicts(content: Mapping, depth: int = 4) -> tuple[dict[str, StateDict], tuple[str, ...]]:
    """Return the state dicts in a checkpoint, and the omitted keys that are needed only for training."""
    state_dicts: dict[str, StateDict] = {}
    left_out: dict[str, None] = {}
    for wrapper in (*PLAIN, *AVERAGED):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and depth:
            copies, keys = find_state_dicts(inner, depth - 1)
            state_dicts |= {f"{wrapper}.{name}".rstrip("."): copy for name, copy in copies.items()}
            left_out |= dict.fromkeys(keys)
    if state_dicts:
        return state_dicts, tuple(left_out)
    arrays = {str(key): value for key, value in content.items() if isinstance(value, StoredArray)}
    for wrapper in AVERAGED:  # files without nesting store the copy under a prefix
        prefixed = {key: arrays.pop(key) for key in list(arrays) if key.startswith(f"{wrapper}.")}
        state_dicts[wrapper] = {key.removeprefix(f"{wrapper}."): value for key, value in prefixed.items()}
    for name, state_dict in {"": arrays, **state_dicts}.items():
        state_dicts[name], extra = _without_wrappers(state_dict)
        left_out |= dict.fromkeys(extra)
    return {name: state_dicts[name] for name in ("", *AVERAGED) if state_dicts[name]}, tuple(left_out)


def _without_wrappers(state_dict: StateDict) -> tuple[StateDict, list[str]]:
    """Remove key components added by wrappers, and networks that are needed only for training."""
    state_dict = {INNER_WRAPPERS.sub("", key): value for key, value in state_dict.items()}
    left_out = [key for key in state_dict if TRAINING_ONLY.fullmatch(key)]
    if len(left_out) == len(state_dict):
        left_out = []
    state_dict = {key: value for key, value in state_dict.items() if key not in set(left_out)}
    for prefix in PREFIXES:
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            bare = {key.removeprefix(prefix): value for key, value in state_dict.items()}
            state_dict, others = _without_wrappers(bare)
            return state_dict, [*left_out, *others]
    return state_dict, left_out


_DTYPES = dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", U8="uint8", BOOL="bool")
_DTYPES |= dict(I64="int64", I32="int32", I16="int16", I8="int8")


def _read_safetensors(path: pathlib.Path) -> StateDict:
    def reader(key: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            # Reopen the file for every array, which releases the pages that were read.
            with safetensors.safe_open(path, framework="numpy") as file:
                return file.get_tensor(key)

        return read

    content = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict, not iterable)
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
    """Import PyTorch, or raise a UserError if it is missing or too old."""
    try:
        import torch  # optional dependency
    except ImportError as error:
        raise UserError(
            "Reading and writing PyTorch files needs PyTorch: pip install torch (its build for "
            "CPU is enough). Files that end in .safetensors need no PyTorch."
        ) from error
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise UserError(
            f"PyTorch {torch.__version__} is not safe with untrusted files: crafted ones execute code in "
            f"versions before {oldest}. Run: pip install -U torch"
        )
    return torch


def _read_torch(path: pathlib.Path) -> tuple[str, dict[Any, Any]]:
    """Read a PyTorch file; in the current format (zip), values stay on disk until they are read."""
    torch = import_torch()
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _check_zip(path)
    try:
        # Training programs store their command line as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # malicious and damaged files raise exceptions of many types
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path} holds one {kind}, not a state dict: expected named tensors.")
    kind = "PyTorch, zip format" if zipped else "PyTorch, legacy format"
    return kind, _stored(torch, path, content, depth=5)


def _check_zip(path: pathlib.Path) -> None:
    """Reject compressed archives, because PyTorch stores arrays uncompressed."""
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
    """Return the error message for an exception raised by `torch.load`."""
    text = " ".join(str(error).split())
    name = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and name:
        return (
            f"{path} is rejected: it holds a Python object ({name[1]}) next to tensors, and loading such "
            "objects can execute code. If you trust where it comes from, save its state dict alone with the "
            "program that wrote it: torch.save(model.state_dict(), 'weights.pth')."
        )
    reason = re.sub(r"^.*?WeightsUnpickler error:", "", text).strip()
    reason = f"{reason[:160]}…" if len(reason) > 160 else reason
    kind = type(error).__name__
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged ({kind}: {reason})."


def _stored(torch: ModuleType, path: pathlib.Path, content: Mapping, depth: int) -> dict[Any, Any]:
    """Keep mappings, tensors as `StoredArray`, and the arguments of the training program."""
    kept: dict[Any, Any] = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            kept[key] = _stored_tensor(torch, path, key, value)
        elif isinstance(value, Mapping) and depth:
            kept[key] = dict(value) if key in ARGUMENTS else _stored(torch, path, value, depth - 1)
        elif isinstance(value, argparse.Namespace):
            kept[key] = value
    return kept


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
        if name == "bfloat16":  # an extension dtype of NumPy, which PyTorch cannot convert to
            return tensor.view(torch.int16).numpy().view(dtype)
        return tensor.numpy()

    return StoredArray(tuple(tensor.shape), dtype, read)
