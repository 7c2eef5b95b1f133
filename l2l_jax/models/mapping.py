"""Conversion between PyTorch state dicts and Flax parameter trees by a table of names.

    names = {"encoder/blocks_{i}/{layer}": "blocks.{i}.{layer}", "decoder/mask_token": "mask_token"}

An entry names a module or a single array. A single letter such as `{i}` matches an integer; a longer word
matches any part of a name, whose slashes become dots. Arrays are only permuted and reshaped, so import
followed by export is bit-exact.
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
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""Dtypes of weights; float32 represents every value of the others exactly."""

# PyTorch's array names within a module, keyed by Flax's
LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
StateDict = Mapping[str, Any]  # arrays or `StoredArray`, keyed by PyTorch name


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array stored in a file; `read` loads it when it is converted to a NumPy array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(), dtype, copy=copy)


class Layout(NamedTuple):
    """A pair of inverse functions that convert an array's axis order between PyTorch and Flax."""

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
    """A PyTorch key whose value is determined by the model, such as a sine-cosine table.

    Import compares it with `value(config)` within `rtol` if the key is present. Export writes it, always in
    float32 if `exact`, otherwise in the dtype of the weights. `hint` is appended to the error message.
    """

    torch_key: str
    value: Callable[[Any], np.ndarray]
    hint: str = ""
    rtol: float = 0.0
    exact: bool = False


class Table(NamedTuple):
    """The names of one checkpoint format."""

    # PyTorch names keyed by Flax names; the first match applies. Kernels with four axes are converted as
    # convolutions, others are transposed. For any other layout the value is a pair of name and layout.
    names: Mapping[str, str | tuple[str, Layout]]
    constants: tuple[Constant, ...] = ()  # keys that are not parameters
    ignored: str = "(?!)"  # regular expression for keys that import ignores

    def key_of(self, path: str, rank: int) -> tuple[str, Layout]:
        """Return the PyTorch key and the layout of the parameter at `path`, which has `rank` axes."""
        module, _, leaf = path.rpartition("/")
        source, ending = (module, f".{LEAVES[leaf]}") if leaf in LEAVES else (path, "")
        usual = same if leaf != "kernel" else conv if rank == 4 else linear
        for template, value in self.names.items():
            match = _regex(template).fullmatch(source)
            if match:
                name, layout = value if isinstance(value, tuple) else (value, usual)
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
    """Result of comparing the names and shapes of a state dict with those of a model."""

    places: dict[str, tuple[str, Layout]]  # PyTorch key and layout, keyed by Flax path
    unexpected: list[str]  # PyTorch keys of the state dict that the model does not have
    missing: list[str]  # PyTorch keys of the model that the state dict does not have
    misshapen: list[str]  # descriptions of arrays with a wrong shape

    def complaint(self) -> str | None:
        if self.unexpected or self.missing:
            return (
                "the weights do not match the model. Unexpected keys: "
                f"{listing(self.unexpected)}. Missing keys: {listing(self.missing)}."
            )
        if self.misshapen:
            return f"array shapes do not match the model: {listing(self.misshapen)}."
        return None


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Join at most `limit` names by commas and count the others; return "none" if there are none."""
    names = list(names)
    text = ", ".join(names[:limit])
    return f"{text} and {len(names) - limit} more" if len(names) > limit else text or "none"


def fit(table: Table, state_dict: StateDict, target: Any) -> Fit:
    """Compare the names and shapes of a state dict with those of a model, without reading values."""
    flat = traverse_util.flatten_dict(target, sep="/")
    places = {path: table.key_of(path, len(like.shape)) for path, like in flat.items()}
    keys, misshapen = {key for key, _ in places.values()}, []
    for path, (key, layout) in places.items():
        expected = layout.to_torch(np.broadcast_to(False, flat[path].shape)).shape
        if key in state_dict and tuple(state_dict[key].shape) != expected:
            misshapen.append(f"{key} {tuple(state_dict[key].shape)}, not {expected}")
    constants = {constant.torch_key for constant in table.constants}
    unexpected = [key for key in state_dict.keys() - keys - constants if not re.fullmatch(table.ignored, key)]
    return Fit(places, sorted(unexpected), sorted(keys - state_dict.keys()), misshapen)


def to_flax(table: Table, state_dict: StateDict, target: Any, config: Any = None) -> Any:
    """Convert a PyTorch state dict to a parameter tree; raise a UserError if it does not fit the model.

    The result has the structure of `target`, a tree of shapes, and NumPy arrays in the dtype of the source.
    `config` is the argument of `Constant.value`.
    """
    result = fit(table, state_dict, target)
    if complaint := result.complaint():
        raise UserError(complaint)
    for constant in table.constants:
        if constant.torch_key in state_dict:
            _check_constant(constant, np.asarray(state_dict[constant.torch_key]), constant.value(config))
    places = result.places.items()
    filled = {path: layout.to_flax(np.asarray(state_dict[key])) for path, (key, layout) in places}
    return traverse_util.unflatten_dict(filled, sep="/")


def _check_constant(constant: Constant, value: np.ndarray, expected: np.ndarray) -> None:
    problem = "is not the fixed table of this model."
    if value.dtype.kind in "biu" and expected.dtype.kind == "f":
        raise UserError(f"{constant.torch_key} is {value.dtype}; expected {', '.join(FLOATS)}.")
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
    """Return whether values agree, allowing for half-precision rounding now or before they were stored."""
    wide, errors = value.astype(np.float64), [1e-5]
    if value.dtype.kind not in "biu":
        halves = (FLOATS["float16"], FLOATS["bfloat16"])
        errors += [
            float(jnp.finfo(d).eps) for d in halves if np.array_equal(wide, wide.astype(d).astype(float))
        ]
    return np.allclose(wide, expected, rtol=rtol, atol=max(errors))


def to_torch(table: Table, params: Any, config: Any = None, dtype: Any = None) -> dict[str, np.ndarray]:
    """Convert a parameter tree to a PyTorch state dict with constants; the inverse of `to_flax`.

    Arrays are contiguous. Floating-point arrays are cast to `dtype` unless it is None.
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
    """Return the shape of the array `key`, which must have `rank` axes, all longer than 0."""
    if key not in state_dict:
        raise UserError(f"the size of the model cannot be inferred: {key} is missing.")
    shape = tuple(state_dict[key].shape)
    if len(shape) != rank or 0 in shape:
        raise UserError(f"the size of the model cannot be inferred: {key} has shape {shape}.")
    return shape


def count(state_dict: StateDict, template: str) -> int:
    """Count the distinct numbers at `{i}` among keys that start with `template`."""
    prefix, suffix = (re.escape(part) for part in template.split("{i}"))
    pattern = re.compile(rf"{prefix}(\d+){suffix}")
    return len({match[1] for match in map(pattern.match, state_dict) if match})


def square_side(places: int, key: str) -> int:
    """Return the side length of a square grid with `places` positions."""
    side = round(places**0.5)
    if side < 1 or side**2 != places:
        raise UserError(f"{key} has {places} positions, which is not a square number of patches.")
    return side


# Information about a checkpoint in addition to its arrays: "file", its name; "args", the arguments of the
# training program; "config" and "preprocessor", the JSON files of a Hugging Face folder; "pipeline", the path
# of a diffusers pipeline, and "components", the JSON files of its parts. All except "file" are optional.
Origin = Mapping[str, Any]
Fields = dict[str, Any]  # model fields by name


class CheckpointFormat:
    """A PyTorch checkpoint format of a model family.

    Attributes:
      table: Names and constants, after `unwrap`; the config passed to `Constant.value` is the model.
      parts: Parts of the parameters that a checkpoint holds.
      published: Non-default fields of the published models, by model name.
      hidden: Fields that cannot be inferred from shapes and cannot be guessed for unpublished models.
      wrapper: Key of the state dict within PyTorch files.
      is_folder: Whether the format is a folder of files.
    """

    table: Table
    parts: tuple[str, ...] = ("encoder", "decoder")
    published: Mapping[str, Fields] = {}
    hidden: tuple[str, ...] = ()
    wrapper: str = ""
    is_folder: bool = False

    def recognize(self, state_dict: StateDict) -> bool:
        """Return whether the keys match this format; raise a UserError for an incomplete model."""
        raise NotImplementedError

    def unwrap(self, state_dict: StateDict) -> StateDict:
        """Return the state dict with the keys of `table`."""
        return state_dict

    def join(self, state_dict: StateDict, second: StateDict) -> StateDict:
        """Merge the state dicts of a model that is stored in two files."""
        raise UserError("--vqgan, a second file, is supported only for MAGE.")

    def sizes(self, state_dict: StateDict) -> Fields:
        """Infer fields from the shapes of arrays."""
        raise NotImplementedError

    def stated(self, origin: Origin, sizes: Fields) -> Fields:
        """Return the fields that the checkpoint states explicitly."""
        return {}

    def guessed(self, origin: Origin, sizes: Fields) -> Fields:
        """Return likely values of fields that are neither stated nor inferred from shapes."""
        return {}

    def computed(self, state_dict: StateDict, model: Any, origin: Origin) -> Fields:
        """Compute parts of the parameters from the checkpoint on import."""
        return {}

    def licence(self, file: str) -> str:
        """Return the license of the weights in a file with this name; "" if it is unknown."""
        return ""

    def folder(self, state_dict: StateDict, model: Any, origin: Origin) -> dict[str, Any]:
        """Return the files of an exported folder: state dicts and JSON objects by file name."""
        raise NotImplementedError

    def lora(self, adapter: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the content of the file for exporting an adapter without its model."""
        raise UserError("adapters of this family have no format of their own: export the merged model.")
