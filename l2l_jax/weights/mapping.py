"""PyTorch state dicts ⇄ Flax parameter trees by an ordered table of rules, used in both directions.

A rule joins a PyTorch key to a Flax path; `{i}`-like names in both stand for integers:

    Rule("blocks.{i}.attn.qkv.weight", "encoder/blocks_{i}/attn/qkv/kernel", linear)

Arrays are only permuted and reshaped, never computed with: import followed by export gives back the
same bits. Every key without a rule and every parameter without a value is an error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array lies in PyTorch and in Flax: each function undoes the other."""

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
    """One line of a table: a PyTorch key, the Flax path it goes to, and the change of layout."""

    torch_key: str
    flax_path: str
    layout: Layout = same


@dataclasses.dataclass(frozen=True)
class Constant:
    """A PyTorch key whose value follows from the model's sizes, such as a sine-cosine table.

    Import checks it, if it is there, and export writes it: `value(config) -> array` gives it.
    """

    torch_key: str
    value: Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A PyTorch key (a regular expression) that the model has no use for; dropped at import."""

    pattern: str


Table = Iterable[Rule | Constant | Ignored]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a state dict and a model fit together, judged by names and shapes alone.

    Attributes:
      places: rule and Flax path by PyTorch key, of the arrays that have a place.
      constants: the constants of the table that the state dict holds, by PyTorch key.
      unexpected: PyTorch keys without a place in the model.
      missing: PyTorch keys of the parameters without a value.
      misshapen: PyTorch keys with a place but a wrong shape: the shape and the one expected.
    """

    places: dict[str, tuple[Rule, str]]
    constants: dict[str, Constant]
    unexpected: list[str]
    missing: list[str]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def complaint(self) -> str | None:
        """What does not fit, in one or two sentences; None where all does."""
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
    """`names` in a row; only the first `limit` of many; "none" for none."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


class _Translator:
    """Finds the first rule whose source template matches a name, and fills in its target."""

    def __init__(self, rules: list[Rule], source: str, target: str):
        self._rules = [(_regex(getattr(rule, source)), getattr(rule, target), rule) for rule in rules]

    def __call__(self, name: str) -> tuple[Rule, str] | None:
        for regex, target, rule in self._rules:
            match = regex.match(name)
            if match:
                return rule, target.format(**match.groupdict())
        return None


def _regex(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(re.escape(part) if k % 2 == 0 else rf"(?P<{part}>\d+)" for k, part in enumerate(parts))
    return re.compile(pattern + r"\Z")


def fit(table: Table, state_dict: Mapping[str, Any], target: Any) -> Fit:
    """Compare a state dict with a model without reading a value.

    Args:
      table: the family's rules; the first that matches a key is used.
      state_dict: things with a `shape`, by PyTorch key.
      target: tree of arrays or `jax.ShapeDtypeStruct`: the parameters to fill.
    """
    table = list(table)
    rules = [r for r in table if isinstance(r, Rule)]
    constants = {r.torch_key: r for r in table if isinstance(r, Constant)}
    ignored = [re.compile(r.pattern + r"\Z") for r in table if isinstance(r, Ignored)]
    to_path = _Translator(rules, "torch_key", "flax_path")
    to_key = _Translator(rules, "flax_path", "torch_key")
    flat_target = traverse_util.flatten_dict(target, sep="/")
    places, unexpected, misshapen = {}, [], {}
    for key, value in state_dict.items():
        if key in constants or any(pattern.match(key) for pattern in ignored):
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
    present = {key: rule for key, rule in constants.items() if key in state_dict}
    return Fit(places, present, sorted(unexpected), sorted(missing), misshapen)


def to_flax(
    table: Table,
    state_dict: Mapping[str, Any],
    target: Any,
    config: Any = None,
    what: str = "state dict",
) -> Any:
    """The parameter tree that a PyTorch state dict holds.

    Args:
      table: the family's rules; the first that matches a key is used.
      state_dict: arrays, or what `numpy.asarray` turns into one and has a `shape`, by PyTorch key.
      target: tree of arrays or `jax.ShapeDtypeStruct`: the parameters to fill.
      config: passed to `Constant.value`.
      what: name of the source, for messages.

    Returns:
      A tree like `target` of NumPy arrays with the dtype of the source, views of it where possible.

    Raises:
      UserError: keys without a rule, parameters without a value, a wrong shape, or a constant that
        differs; the message lists both sides.
    """
    found = fit(table, state_dict, target)
    complaint = found.complaint()
    if complaint:
        raise UserError(f"{what}: {complaint}")
    for key, constant in found.constants.items():
        _check_constant(what, key, np.asarray(state_dict[key]), constant.value(config))
    filled = {
        path: rule.layout.to_flax(np.asarray(state_dict[key])) for key, (rule, path) in found.places.items()
    }
    return traverse_util.unflatten_dict(filled, sep="/")


def _check_constant(what: str, key: str, value: np.ndarray, expected: np.ndarray) -> None:
    rounding = 0.0 if value.dtype.kind in "biu" else float(jnp.finfo(value.dtype).eps)
    same_shape = value.shape == expected.shape
    if not same_shape or not np.allclose(
        value.astype(np.float64), expected, rtol=0, atol=max(1e-5, rounding)
    ):
        raise UserError(
            f"{what}: {key} is not the fixed table of this model (shape {value.shape}, expected "
            f"{expected.shape}). Was it trained at another image size, or with learned positions?"
        )


def to_torch(table: Table, params: Any, config: Any = None) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a parameter tree: the inverse of `to_flax`.

    Returns:
      Contiguous arrays by PyTorch key; constants included, ignored keys left out.

    Raises:
      ValueError: a parameter that no rule names.
    """
    table = list(table)
    to_key = _Translator([r for r in table if isinstance(r, Rule)], "flax_path", "torch_key")
    state_dict = {r.torch_key: r.value(config) for r in table if isinstance(r, Constant)}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        found = to_key(path)
        if found is None:
            raise ValueError(f"no rule of the table names the parameter {path}")
        rule, key = found
        state_dict[key] = np.ascontiguousarray(rule.layout.to_torch(np.asarray(value)))
    return state_dict


def norm_rules(torch_norm: str, flax_norm: str) -> list[Rule]:
    """A normalisation layer with scale and bias."""
    return [
        Rule(f"{torch_norm}.weight", f"{flax_norm}/scale"),
        Rule(f"{torch_norm}.bias", f"{flax_norm}/bias"),
    ]


def dense_rules(torch_dense: str, flax_dense: str) -> list[Rule]:
    """A dense layer with bias."""
    return [
        Rule(f"{torch_dense}.weight", f"{flax_dense}/kernel", linear),
        Rule(f"{torch_dense}.bias", f"{flax_dense}/bias"),
    ]
