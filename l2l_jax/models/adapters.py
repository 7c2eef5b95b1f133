"""Small adapters that are added to a model's weights.

"lora": A product of two narrow matrices is added to every kernel K: K + A·B (Hu et al., ICLR 2022, "LoRA").
B is initialized to zero, so the first step runs the original model. The entries of A have variance 1/rank,
which makes the effect of an Adam step independent of the rank (cf. Kalajdzievski 2023, "rsLoRA").

"norms": A difference, initialized to zero, is added to scales and biases of the normalization layers.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models.base import Model, Params

AdapterKind = Literal["", "lora", "norms"]
AdapterLayers = Literal["all", "attention", "attention+convolution"]
ADAPTER = "adapter"  # name of the trained part of the parameters
# A tree like that of the weights without the unchanged ones: `{"down": A, "up": B}` or
# `{"delta": difference}` in place of each array
Adapter = Mapping[str, Any]

# `(module name, kernel shape) -> bool`: True for kernels to adapt
Takes = Callable[[str, tuple[int, ...]], bool]


def takes_lora(model: Model, layers: AdapterLayers) -> Takes:
    """Return the predicate that selects the kernels of `layers`."""

    def takes(module: str, shape: tuple[int, ...]) -> bool:
        is_convolution = layers == "attention+convolution" and len(shape) == 4
        return layers == "all" or module in model.attention_layers or is_convolution

    return takes


def new_adapter(
    params: Params, kind: AdapterKind, rank: int, rng: jax.Array, takes: Takes | None = None
) -> dict[str, Any]:
    """Return a new adapter, which leaves the model unchanged; raise a ValueError if nothing can be adapted.

    Args:
      params: Parts to adapt, as arrays or shapes.
      kind: "lora" adapts every kernel that is larger than its two factors; "norms" adapts scale and bias of
        every module that has a scale.
      rank: Number of columns of A.
      rng: JAX key.
      takes: Predicate that selects the kernels for "lora"; None selects all.
    """
    keys = (jax.random.fold_in(rng, number) for number in range(2**31))

    def visit(tree: Mapping[str, Any], module: str) -> dict[str, Any]:
        changes = {}
        for name in sorted(tree):
            value = tree[name]
            if isinstance(value, Mapping):
                changes[name] = visit(value, name)
            elif kind == "norms" and "scale" in tree:
                changes[name] = {"delta": jnp.zeros(value.shape, jnp.float32)}
            elif kind == "lora" and name == "kernel" and (takes is None or takes(module, value.shape)):
                changes[name] = _factors(value.shape, rank, next(keys))
        return {name: value for name, value in changes.items() if value}

    adapter = visit(params, "")
    if not adapter:
        raise ValueError(f"no weight of the model can be adapted by {kind!r} of rank {rank}")
    return adapter


def _factors(shape: tuple[int, ...], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Return A and B for a kernel, or {} unless they are smaller than the kernel.

    Kernels are `[in, out]`, `[layer, in, out]` or `[height, width, in, out]`; for the last, A has one row per
    element of the convolution window.
    """
    stack = shape[:1] if len(shape) == 3 else ()
    rows, columns = math.prod(shape[len(stack) : -1]), shape[-1]
    if rank * (rows + columns) >= rows * columns:
        return {}
    down = jax.random.normal(key, (*stack, rows, rank), jnp.float32) / math.sqrt(rank)
    return {"down": down, "up": jnp.zeros((*stack, rank, columns), jnp.float32)}


def adapted(weights: Any, adapter: Adapter) -> Any:
    """Return weights with an adapter added, for computation; differentiable with respect to the adapter."""
    return _added(weights, adapter, operator.add)


def without_adapter(params: Params) -> Params:
    """Return all parts except `ADAPTER`, which is added to the other parts if present, for computation."""
    return adapted({part: x for part, x in params.items() if part != ADAPTER}, params.get(ADAPTER, {}))


def merged(params: Params, adapter: Adapter) -> Params:
    """Return weights with an adapter added, as host arrays.

    Products and sums are computed in float64 and rounded once, which gives the same bits on every machine.
    """

    def add(weights: Any, change: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights)
        return (weights.astype(np.float64) + change).astype(weights.dtype)

    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), adapter)
    return _added(params, wide, add)


def _added(weights: Any, adapter: Adapter, add: Callable[[Any, Any], Any]) -> Any:
    if not isinstance(weights, Mapping):
        change = adapter["delta"] if "delta" in adapter else adapter["down"] @ adapter["up"]
        return add(weights, change.reshape(weights.shape))
    return {
        name: _added(value, adapter[name], add) if name in adapter else value
        for name, value in weights.items()
    }
