"""PyTorch state dicts to Flax parameter trees and back, by a table of names.

    names = {"encoder/blocks_{i}/{layer}": "blocks.{i}.{layer}", "decoder/mask_token": "mask_token"}

Names are those of modules or of single arrays. `{i}`, a single letter, stands for an integer, a longer word
for any part of a name, with dots in place of slashes. Arrays are only permuted and reshaped: import followed
by export gives back the same bits.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.errors import UserError

FLOATS = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16),
}  # fmt: skip
"""Number formats of weights; float32 holds every value of the others."""

# PyTorch's names of the arrays of a module, by Flax's
LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
StateDict = Mapping[str, Any]  # arrays or `StoredArray` by PyTorch key


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, read by `read` when NumPy asks for it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(), dtype, copy=copy)


class Layout(NamedTuple):
    """The axes of an array in PyTorch and in Flax; the functions are inverses."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


same = Layout(lambda x: x, lambda x: x)
linear = Layout(lambda x: x.T, lambda x: x.T)  # (out, in) ⇄ (in, out)
conv = Layout(  # (out, in, height, width) ⇄ (height, width, in, out)
    lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
conv1x1_1d = Layout(lambda x: x[..., 0].T, lambda x: x.T[..., None])  # (out, in, 1) ⇄ (in, out)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A PyTorch key whose value follows from the model, such as a sine-cosine table.

    Import compares it with `value(config)` if it is there, up to `rtol`; export writes it, in float32
    whatever the format of the weights if it is `exact`. `hint` ends the error message.
    """

    torch_key: str
    value: Callable[[Any], np.ndarray]
    hint: str = ""
    rtol: float = 0.0
    exact: bool = False


class Table(NamedTuple):
    """The names of one format of checkpoints."""

    # PyTorch's names by Flax's; the first that matches counts. Kernels of four axes are those of
    # convolutions, others are transposed; for another layout the value is a pair of name and layout.
    names: Mapping[str, str | tuple[str, Layout]]
    constants: tuple[Constant, ...] = ()  # keys that are no parameters
    ignored: str = "(?!)"  # regular expression of keys that import drops

    def key_of(self, path: str, rank: int) -> tuple[str, Layout]:
        """Return PyTorch's key and the layout of the parameter at `path`, which has `rank` axes."""
        module, _, leaf = path.rpartition("/")
        source, ending = (module, f".{LEAVES[leaf]}") if leaf in LEAVES else (path, "")
        usual = same if leaf != "kernel" else conv if rank == 4 else linear
        for template, given in self.names.items():
            match = _regex(template).fullmatch(source)
            if match:
                name, layout = given if isinstance(given, tuple) else (given, usual)
                name = name.format(**{part: x.replace("/", ".") for part, x in match.groupdict().items()})
                return name + ending, same if rank < 2 else layout
        raise ValueError(f"the table does not name the parameter {path}")


@functools.cache
def _regex(template: str) -> re.Pattern:
    def pattern(part: str) -> str:
        return rf"(?P<{part}>\d+)" if len(part) == 1 else rf"(?P<{part}>.+)"

    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(pattern(part) if k % 2 else re.escape(part) for k, part in enumerate(parts)))


class Fit(NamedTuple):
    """Fit of a state dict and a model, judged by names and shapes alone."""

    places: dict[str, tuple[str, Layout]]  # PyTorch key and layout by Flax path
    # PyTorch keys without a place in the model, or without a value
    unexpected: list[str]
    missing: list[str]
    misshapen: list[str]  # arrays of a wrong shape, in words

    def complaint(self) -> str | None:
        if self.unexpected or self.missing:
            return (
                "the weights do not fit the model. Without a place in the model: "
                f"{listing(self.unexpected)}. Without a value: {listing(self.missing)}."
            )
        if self.misshapen:
            return f"arrays have another shape than the model's: {listing(self.misshapen)}."
        return None


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Join names by commas; only the first `limit` of many; "none" for none."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


def fit(table: Table, state_dict: StateDict, target: Any) -> Fit:
    """Compare a state dict with a model without reading a value."""
    flat = traverse_util.flatten_dict(target, sep="/")
    places = {path: table.key_of(path, len(like.shape)) for path, like in flat.items()}
    keys, misshapen = {key for key, _ in places.values()}, []
    for path, (key, layout) in places.items():
        wanted = layout.to_torch(np.broadcast_to(False, flat[path].shape)).shape
        if key in state_dict and tuple(state_dict[key].shape) != wanted:
            misshapen.append(f"{key} {tuple(state_dict[key].shape)}, not {wanted}")
    constants = {constant.torch_key for constant in table.constants}
    unexpected = [key for key in state_dict.keys() - keys - constants if not re.fullmatch(table.ignored, key)]
    return Fit(places, sorted(unexpected), sorted(keys - state_dict.keys()), misshapen)


def to_flax(table: Table, state_dict: StateDict, target: Any, config: Any = None) -> Any:
    """Return the parameter tree that a PyTorch state dict holds; what does not fit raises a UserError.

    `target`, a tree of shapes, is filled with NumPy arrays in the dtype of the source; `config` is the
    argument of `Constant.value`.
    """
    found = fit(table, state_dict, target)
    if complaint := found.complaint():
        raise UserError(complaint)
    for constant in table.constants:
        if constant.torch_key in state_dict:
            _check_constant(constant, np.asarray(state_dict[constant.torch_key]), constant.value(config))
    places = found.places.items()
    filled = {path: layout.to_flax(np.asarray(state_dict[key])) for path, (key, layout) in places}
    return traverse_util.unflatten_dict(filled, sep="/")


def _check_constant(constant: Constant, value: np.ndarray, expected: np.ndarray) -> None:
    problem = "is not the fixed table of this model."
    if value.dtype.kind in "biu" and expected.dtype.kind == "f":
        raise UserError(f"{constant.torch_key} is {value.dtype}; expected are {', '.join(FLOATS)}.")
    if not np.isfinite(value).all():
        raise UserError(
            f"{constant.torch_key} holds NaN or infinite values: the training diverged, or the file is "
            "damaged. Use another checkpoint."
        )
    if value.shape != expected.shape:
        problem = f"has shape {value.shape}, and this model's table {expected.shape}."
    elif not value.any() and expected.any():
        problem = "is all zeros: such a model was created without its fixed table and never trained."
    elif _agree(value, expected, constant.rtol):
        return
    raise UserError(f"{constant.torch_key} {problem} {constant.hint}".rstrip())


def _agree(value: np.ndarray, expected: np.ndarray, rtol: float) -> bool:
    """Compare values that may have been rounded to half precision, now or before they were stored."""
    wide, errors = value.astype(np.float64), [1e-5]
    if value.dtype.kind not in "biu":
        halves = (FLOATS["float16"], FLOATS["bfloat16"])
        errors += [
            float(jnp.finfo(d).eps) for d in halves if np.array_equal(wide, wide.astype(d).astype(float))
        ]
    return np.allclose(wide, expected, rtol=rtol, atol=max(errors))


def to_torch(table: Table, params: Any, config: Any = None, dtype: Any = None) -> dict[str, np.ndarray]:
    """Return the PyTorch state dict of a parameter tree, constants included: the inverse of `to_flax`.

    Arrays are contiguous, floating-point ones in `dtype` unless it is None.
    """

    def rounded(value: np.ndarray) -> np.ndarray:
        return value.astype(dtype, copy=False) if dtype is not None and value.dtype.kind == "f" else value

    state_dict = {}
    for constant in table.constants:
        value = constant.value(config)
        state_dict[constant.torch_key] = value if constant.exact else rounded(value)
    for path, x in traverse_util.flatten_dict(params, sep="/").items():
        key, layout = table.key_of(path, x.ndim)
        state_dict[key] = rounded(np.ascontiguousarray(layout.to_torch(np.asarray(x))))
    return state_dict


def shape_of(state_dict: StateDict, key: str, rank: int) -> tuple[int, ...]:
    """Return the shape of the array `key`, which has `rank` axes, all longer than 0."""
    if key not in state_dict:
        raise UserError(f"the size of the model cannot be told: {key} is missing.")
    shape = tuple(state_dict[key].shape)
    if len(shape) != rank or 0 in shape:
        raise UserError(f"the size of the model cannot be told: {key} has shape {shape}.")
    return shape


def count(state_dict: StateDict, template: str) -> int:
    """Count the different numbers in the place of `{i}` at the start of keys."""
    before, after = (re.escape(part) for part in template.split("{i}"))
    pattern = re.compile(rf"{before}(\d+){after}")
    return len({match[1] for match in map(pattern.match, state_dict) if match})


def square_side(places: int, key: str) -> int:
    """Return the side of a square of `places` places."""
    side = round(places**0.5)
    if side < 1 or side**2 != places:
        raise UserError(f"{key} has {places} places, which is not a square number of patches.")
    return side


# Facts of a checkpoint besides its arrays: "file", its name; "args", the arguments of the training program;
# "config" and "preprocessor", the JSON files of a Hugging Face folder; "pipeline", the path of a pipeline of
# diffusers, and "components", the JSON files of its parts. Each but "file" may be missing.
Origin = Mapping[str, Any]
Fields = dict[str, Any]  # fields of a model by name


class CheckpointFormat:
    """One format of the PyTorch checkpoints of a model family.

    Attributes:
      table: Names and constants, after `unwrap`; the config of `Constant` is the model.
      parts: Parts of the parameters that a checkpoint holds.
      published: Fields of the published models by name, where they differ from the defaults.
      hidden: Fields that shapes do not show and that cannot be guessed for unpublished models.
      wrapper: Key under which PyTorch files hold the state dict.
      is_folder: Whether the format is a folder of files.
    """

    table: Table
    parts: tuple[str, ...] = ("encoder", "decoder")
    published: Mapping[str, Fields] = {}
    hidden: tuple[str, ...] = ()
    wrapper: str = ""
    is_folder: bool = False

    def recognize(self, state_dict: StateDict) -> bool:
        """Return whether the keys are those of the format; a part of a model raises a UserError."""
        raise NotImplementedError

    def unwrap(self, state_dict: StateDict) -> StateDict:
        """Return the state dict with the keys of `table`."""
        return state_dict

    def join(self, state_dict: StateDict, second: StateDict) -> StateDict:
        """Return the state dict of a model that comes in two files."""
        raise UserError("a second file, --vqgan, belongs to MAGE.")

    def sizes(self, state_dict: StateDict) -> Fields:
        """Return the fields that shapes show."""
        raise NotImplementedError

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        """Return the fields that the checkpoint states."""
        return {}

    def guessed(self, origin: Origin, sizes: Fields) -> Fields:
        """Return fields that are likely, but neither shown nor stated."""
        return {}

    def computed(self, state_dict: StateDict, model: Any, origin: Origin) -> Fields:
        """Return parts of the parameters that are computed from the checkpoint on import."""
        return {}

    def licence(self, file: str) -> str:
        """Return the licence of the weights in a file of that name; "" if it is not known."""
        return ""

    def folder(self, state_dict: StateDict, model: Any, origin: Origin) -> dict[str, Any]:
        """Return the files of a folder: state dicts and JSON objects by file name."""
        raise NotImplementedError

    def lora(self, adapter: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the content of the file that an adapter is exported to without its model."""
        raise UserError("adapters of this family have no format of their own: export the merged model.")
