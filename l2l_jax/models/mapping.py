"""PyTorch state dicts to Flax parameter trees and back, by an ordered table of rules.

A rule joins a PyTorch key to a Flax path; `{i}`-like names in both stand for integers:

    Rule("blocks.{i}.attn.qkv.weight", "encoder/blocks_{i}/attn/qkv/kernel", linear)

Arrays are only permuted and reshaped: import followed by export gives back the same bits. A key without a
rule and a parameter without a value are errors.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.errors import UserError

FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""Number formats of weights; float32 holds every value of the others."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, read by `read` when NumPy asks for it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(), dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class Layout:
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
class Rule:
    """A PyTorch key, the Flax path of its value, and the change of layout."""

    torch_key: str
    flax_path: str
    layout: Layout = same


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


@dataclasses.dataclass(frozen=True)
class Ignored:
    """PyTorch keys (a regular expression) that import drops."""

    pattern: str


Table = Iterable[Rule | Constant | Ignored]


def norm_rules(torch_norm: str, flax_norm: str) -> list[Rule]:
    """Return the rules of a normalization layer with scale and bias."""
    weight = Rule(f"{torch_norm}.weight", f"{flax_norm}/scale")
    return [weight, Rule(f"{torch_norm}.bias", f"{flax_norm}/bias")]


def dense_rules(torch_dense: str, flax_dense: str, layout: Layout = linear) -> list[Rule]:
    """Return the rules of a dense or, with another layout, convolutional layer with bias."""
    weight = Rule(f"{torch_dense}.weight", f"{flax_dense}/kernel", layout)
    return [weight, Rule(f"{torch_dense}.bias", f"{flax_dense}/bias")]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a state dict and a model fit together, judged by names and shapes alone.

    Attributes:
      places: Rule and Flax path by PyTorch key, of the arrays that have a place.
      constants: The constants of the table that the state dict holds.
      unexpected: PyTorch keys without a place in the model.
      missing: PyTorch keys of the parameters without a value.
      misshapen: The shape and the expected shape by PyTorch key.
    """

    places: dict[str, tuple[Rule, str]]
    constants: list[Constant]
    unexpected: list[str]
    missing: list[str]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def complaint(self) -> str | None:
        """Describe what does not fit, or return None."""
        if self.unexpected or self.missing:
            return (
                "the weights do not fit the model. Without a place in the model: "
                f"{listing(self.unexpected)}. Without a value: {listing(self.missing)}."
            )
        if self.misshapen:
            shapes = [f"{key} {got}, not {want}" for key, (got, want) in self.misshapen.items()]
            return f"arrays have another shape than the model's: {listing(shapes)}."
        return None


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Join names by commas; only the first `limit` of many; "none" for none."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


class _Translator:
    """Finds the first rule whose source template matches a name, and fills in its target."""

    def __init__(self, table: Table, source: str, target: str):
        rules = [rule for rule in table if isinstance(rule, Rule)]
        self._rules = [(_regex(getattr(rule, source)), getattr(rule, target), rule) for rule in rules]

    def __call__(self, name: str) -> tuple[Rule, str] | None:
        for regex, target, rule in self._rules:
            match = regex.fullmatch(name)
            if match:
                return rule, target.format(**match.groupdict())
        return None


def _regex(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(rf"(?P<{part}>\d+)" if k % 2 else re.escape(part) for k, part in enumerate(parts))
    )


def fit(table: Table, state_dict: Mapping[str, Any], target: Any) -> Fit:
    """Compare a state dict with a model without reading a value."""
    table = list(table)
    constants = {rule.torch_key: rule for rule in table if isinstance(rule, Constant)}
    ignored = [re.compile(rule.pattern) for rule in table if isinstance(rule, Ignored)]
    to_path = _Translator(table, "torch_key", "flax_path")
    to_key = _Translator(table, "flax_path", "torch_key")
    flat_target = traverse_util.flatten_dict(target, sep="/")
    places, unexpected, misshapen = {}, [], {}
    for key, value in state_dict.items():
        if key in constants or any(pattern.fullmatch(key) for pattern in ignored):
            continue
        found = to_path(key)
        if found is None or found[1] not in flat_target:
            unexpected.append(key)
            continue
        rule, path = places[key] = found
        expected = rule.layout.to_torch(np.broadcast_to(False, flat_target[path].shape)).shape
        if tuple(value.shape) != expected:
            misshapen[key] = tuple(value.shape), expected
    filled = {path for _, path in places.values()}
    missing = [(to_key(path) or (None, path))[1] for path in flat_target if path not in filled]
    present = [rule for key, rule in constants.items() if key in state_dict]
    return Fit(places, present, sorted(unexpected), sorted(missing), misshapen)


def to_flax(
    table: Table, state_dict: Mapping[str, Any], target: Any, config: Any = None, what: str = "state dict"
) -> Any:
    """Return the parameter tree that a PyTorch state dict holds.

    Args:
      table: The rules; the first that matches a key is used.
      state_dict: Arrays or `StoredArray`, by PyTorch key.
      target: Tree of arrays or `jax.ShapeDtypeStruct`: the parameters to fill.
      config: Argument of `Constant.value`.
      what: Name of the source, for messages.

    Returns:
      A tree like `target` of NumPy arrays in the dtype of the source, views of it where possible.

    Raises:
      UserError: Keys without a rule, parameters without a value, a wrong shape, or another constant.
    """
    found = fit(table, state_dict, target)
    complaint = found.complaint()
    if complaint:
        raise UserError(f"{what}: {complaint}")
    for constant in found.constants:
        _check_constant(what, constant, np.asarray(state_dict[constant.torch_key]), constant.value(config))
    filled = {
        path: rule.layout.to_flax(np.asarray(state_dict[key])) for key, (rule, path) in found.places.items()
    }
    return traverse_util.unflatten_dict(filled, sep="/")


def _check_constant(what: str, constant: Constant, value: np.ndarray, expected: np.ndarray) -> None:
    if value.shape != expected.shape:
        problem = f"has shape {value.shape}, and this model's table {expected.shape}."
    elif not value.any() and expected.any():
        problem = (
            "is all zeros: such a model was created without its fixed table and cannot have been trained."
        )
    elif _agree(value, expected, constant.rtol):
        return
    else:
        problem = "is not the fixed table of this model."
    raise UserError(f"{what}: {constant.torch_key} {problem} {constant.hint}".rstrip())


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
    """Return the PyTorch state dict of a parameter tree: the inverse of `to_flax`.

    Args:
      table: The rules.
      params: Tree of arrays.
      config: Argument of `Constant.value`.
      dtype: Number format of floating-point arrays; None: as they are.

    Returns:
      Contiguous arrays by PyTorch key; constants included, ignored keys left out.

    Raises:
      ValueError: No rule names a parameter.
    """
    table = list(table)
    to_key = _Translator(table, "flax_path", "torch_key")

    def rounded(value: np.ndarray) -> np.ndarray:
        return value.astype(dtype, copy=False) if dtype is not None and value.dtype.kind == "f" else value

    constants = [rule for rule in table if isinstance(rule, Constant)]
    values = {rule.torch_key: rule.value(config) for rule in constants}
    state_dict = {
        rule.torch_key: values[rule.torch_key] if rule.exact else rounded(values[rule.torch_key])
        for rule in constants
    }
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        found = to_key(path)
        if found is None:
            raise ValueError(f"no rule of the table names the parameter {path}")
        rule, key = found
        state_dict[key] = rounded(np.ascontiguousarray(rule.layout.to_torch(np.asarray(value))))
    return state_dict


def shape_of(state_dict: Mapping[str, Any], key: str, rank: int) -> tuple[int, ...]:
    """Return the shape of the array `key`, which has `rank` axes, all longer than 0."""
    if key not in state_dict:
        raise UserError(f"the size of the model cannot be told: {key} is missing.")
    shape = tuple(state_dict[key].shape)
    if len(shape) != rank or 0 in shape:
        raise UserError(f"the size of the model cannot be told: {key} has shape {shape}.")
    return shape


def count(state_dict: Mapping[str, Any], template: str) -> int:
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
