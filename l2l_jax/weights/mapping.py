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

import numpy as np
from flax import traverse_util

from l2l_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array lies in PyTorch and in Flax: each function undoes the other."""

    to_flax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


same = Layout(lambda x, shape: x, lambda x: x)
linear = Layout(lambda x, shape: x.T, lambda x: x.T)  # (out, in) ⇄ (in, out)
conv = Layout(  # (out, in, height, width) ⇄ (height, width, in, out)
    lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
conv1x1_1d = Layout(  # (out, in, 1) ⇄ (in, out)
    lambda x, shape: x[..., 0].T, lambda x: x.T[..., None]
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: a PyTorch key, the Flax path it goes to, and the change of layout."""

    torch_key: str
    flax_path: str
    layout: Layout = same


@dataclasses.dataclass(frozen=True)
class Constant:
    """A PyTorch key whose value follows from the model's sizes, such as a sine-cosine table.

    Import checks it and export writes it: `value(config) -> array` gives it.
    """

    torch_key: str
    value: Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A PyTorch key (a regular expression) that the model has no use for; dropped at import."""

    pattern: str


def _regex(template: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(
        re.escape(part) if k % 2 == 0 else rf"(?P<{part}>\d+)" for k, part in enumerate(parts)
    )
    return re.compile(pattern + r"\Z")


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    for index, (source, target) in enumerate(pairs):
        match = _regex(source).match(name)
        if match:
            return index, target.format(**match.groupdict())
    return None


def _mismatch(what: str, extra: list[str], missing: list[str]) -> UserError:
    def listing(names):
        shown = ", ".join(sorted(names)[:12])
        return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"

    return UserError(
        f"{what}: the weights do not fit the model. Without a place in the model: {listing(extra)}. "
        f"Without a value: {listing(missing)}."
    )


def to_flax(
    table: Iterable[Rule | Constant | Ignored],
    state_dict: Mapping[str, np.ndarray],
    target: Any,
    config: Any = None,
    what: str = "state dict",
) -> Any:
    """The parameter tree that a PyTorch state dict holds.

    Args:
      table: the family's rules; the first that matches a key is used.
      state_dict: arrays by PyTorch key.
      target: tree of arrays or `jax.ShapeDtypeStruct`: the parameters to fill.
      config: passed to `Constant.value`.
      what: name of the source, for messages.

    Returns:
      A tree like `target` of NumPy arrays with the dtype of the source.

    Raises:
      UserError: keys without a rule, parameters without a value, a wrong shape, or a constant that
        differs; the message lists both sides.
    """
    table = list(table)
    rules = [r for r in table if isinstance(r, Rule)]
    constants = {r.torch_key: r for r in table if isinstance(r, Constant)}
    ignored = [re.compile(r.pattern + r"\Z") for r in table if isinstance(r, Ignored)]
    flat_target = traverse_util.flatten_dict(target, sep="/")
    filled: dict[str, np.ndarray] = {}
    extra = []
    for key, value in state_dict.items():
        value = np.asarray(value)
        if key in constants:
            _check_constant(what, key, value, constants[key].value(config))
            continue
        if any(pattern.match(key) for pattern in ignored):
            continue
        found = _translate(key, ((r.torch_key, r.flax_path) for r in rules))
        if found is None or found[1] not in flat_target:
            extra.append(key)
            continue
        index, path = found
        shape = tuple(flat_target[path].shape)
        converted = None
        if value.ndim == rules[index].layout.to_torch(np.empty(shape, np.bool_)).ndim:
            converted = rules[index].layout.to_flax(value, shape)
        if converted is None or converted.shape != shape:
            raise UserError(
                f"{what}: {key} has shape {value.shape}, which does not give {path} {shape}. "
                "Is this another size of the model?"
            )
        filled[path] = converted
    missing = sorted(set(flat_target) - set(filled))
    if extra or missing:
        raise _mismatch(what, extra, missing)
    return traverse_util.unflatten_dict(filled, sep="/")


def _check_constant(what: str, key: str, value: np.ndarray, expected: np.ndarray) -> None:
    if value.shape != expected.shape or not np.allclose(value, expected, atol=1e-5):
        raise UserError(
            f"{what}: {key} is not the fixed table of this model (shape {value.shape}, expected "
            f"{expected.shape}). Was it trained at another image size, or with learned positions?"
        )


def to_torch(
    table: Iterable[Rule | Constant | Ignored], params: Any, config: Any = None
) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a parameter tree: the inverse of `to_flax`.

    Returns:
      Contiguous arrays by PyTorch key; constants included, ignored keys left out.

    Raises:
      ValueError: a parameter that no rule names.
    """
    table = list(table)
    rules = [r for r in table if isinstance(r, Rule)]
    state_dict = {r.torch_key: r.value(config) for r in table if isinstance(r, Constant)}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        found = _translate(path, ((r.flax_path, r.torch_key) for r in rules))
        if found is None:
            raise ValueError(f"no rule of the table names the parameter {path}")
        index, key = found
        state_dict[key] = np.ascontiguousarray(rules[index].layout.to_torch(np.asarray(value)))
    return state_dict
