"""Any method on a small adapter beside the original weights, which stay what they are.

"lora": every kernel K gets a product of two narrow matrices, K + A·B (Hu et al., ICLR 2022, "LoRA"). B starts
at zero, so that the first step sees the original model. The entries of A have variance 1/rank, which keeps a
step of Adam as large in the product whatever the rank (cf. Kalajdzievski 2023, "rsLoRA"); there is no further
factor.

"norms": scales and biases of the normalisation layers get a difference, which starts at zero.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.methods.base import GradientRule, Inputs, Mean, Phases, Task, Terms, identity
from l2l_jax.models.base import Params

AdapterKind = Literal["", "lora", "norms"]

ADAPTER = "adapter"
"""The part of the parameters that is trained."""

Adapter = Mapping[str, Any]
"""A tree like that of the weights, without those that it leaves alone: in place of an array stands
`{"down": A, "up": B}` or `{"delta": difference}`."""


def adapted_task(task: Task, kind: AdapterKind, rank: int) -> Task:
    """A task that trains an adapter of the parts that it would train.

    The gradient of an adapter is that of the weights which it makes, by the chain rule, so that every rule of
    gradients sees the weights: an attacker of `LookAhead` changes all of them.

    Args:
      task: of any method that starts from the original weights.
      kind: "lora" or "norms".
      rank: columns of A, at least 1; of "lora".

    Raises:
      ValueError: the task starts from other weights, or trains salient ones alone.
    """
    if task.start is not None:
        raise ValueError("an adapter is added to the original weights, and this method starts from others")
    if task.saliency < 1:
        raise ValueError("an adapter changes all weights that it is added to: saliency must be 1")

    def weights(trained: Params, frozen: Params) -> Params:
        whole = without_adapter({**frozen, **trained})
        return {part: whole[part] for part in task.trained}

    def through(rule: GradientRule) -> GradientRule:
        return _ThroughWeights(task._replace(gradients=rule), weights)

    phases = None
    if task.phases is not None:
        settle, rules = task.phases.settle, task.phases.rules.items()
        phases = Phases({name: through(rule) for name, rule in rules}, lambda ends: through(settle(ends)))

    def losses(trained, frozen, rows):
        return task.losses(weights(trained, frozen), frozen, rows)

    def start(params, rng):
        parts = {part: params[part] for part in task.trained}
        return {**params, ADAPTER: new_adapter(parts, kind, rank, rng)}

    def merge(params, trained):
        return {**merged(params, trained[ADAPTER]), **trained}

    with_adapter = jax.jit(weights)

    def compose(params, trained):
        return {**params, **with_adapter(trained, {part: params[part] for part in task.trained})}

    return task._replace(
        trained=(ADAPTER,),
        frozen=tuple(dict.fromkeys((*task.frozen, *task.trained))),
        losses=losses,
        gradients=through(task.gradients),
        phases=phases,
        start=start,
        merge=merge,
        compose=compose,
        cast=identity,  # an adapter's small change would be lost in rounded weights
    )


@dataclasses.dataclass(frozen=True)
class _ThroughWeights:
    """The gradient rule of a task, from the weights back to the adapter that makes them."""

    task: Task
    weights: Callable[[Params, Params], Params]

    def compute(
        self, task: Task, trained: Params, frozen: Params, inputs: Inputs, alpha: jax.Array, mean: Mean
    ) -> tuple[Terms, dict[str, Params]]:
        """See `GradientRule`."""
        weights, back = jax.vjp(lambda adapter: self.weights(adapter, frozen), trained)
        terms, gradients = self.task.gradients.compute(self.task, weights, frozen, inputs, alpha, mean)
        return terms, {name: back(gradient)[0] for name, gradient in gradients.items()}

    def combine(self, terms: Terms, gradients: dict[str, Params], alpha: jax.Array) -> Params:
        """See `GradientRule`."""
        return self.task.gradients.combine(terms, gradients, alpha)


def new_adapter(params: Params, kind: AdapterKind, rank: int, rng: jax.Array) -> dict[str, Any]:
    """An adapter that changes nothing yet.

    Args:
      params: the parts to adapt, arrays or shapes.
      kind: "lora": of every kernel that two factors are smaller than; "norms": of the scale and bias of every
        module that has a scale.
      rank: columns of A.
      rng: key of the A.

    Raises:
      ValueError: there is nothing to adapt.
    """
    keys = (jax.random.fold_in(rng, number) for number in range(2**31))

    def visit(tree: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name in sorted(tree):
            value = tree[name]
            if isinstance(value, Mapping):
                found[name] = visit(value)
            elif kind == "norms" and "scale" in tree:
                found[name] = {"delta": jnp.zeros(value.shape, jnp.float32)}
            elif kind == "lora" and name == "kernel":
                found[name] = _factors(value.shape, rank, next(keys))
        return {name: value for name, value in found.items() if value}

    adapter = visit(params)
    if not adapter:
        raise ValueError(f"no weight of the model takes an adapter {kind!r} of rank {rank}")
    return adapter


def _factors(shape: tuple[int, ...], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """A and B of a kernel; none if they would not be smaller than it."""
    stack, rows, columns = _matrix(shape)
    if rank * (rows + columns) >= rows * columns:
        return {}
    down = jax.random.normal(key, (*stack, rows, rank), jnp.float32) / math.sqrt(rank)
    return {"down": down, "up": jnp.zeros((*stack, rank, columns), jnp.float32)}


def _matrix(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """A kernel's shape as a stack of matrices: `[in, out]`, `[layer, in, out]` or `[height, width, in, out]`,
    the last as one matrix with a row for every input of the convolution."""
    stack = shape[:1] if len(shape) == 3 else ()
    return stack, math.prod(shape[len(stack) : -1]), shape[-1]


def adapted(weights: Any, adapter: Adapter) -> Any:
    """Weights with an adapter added, to compute with: differentiable in the adapter."""
    return _added(weights, adapter, lambda x, change: x + change)


def without_adapter(params: Params) -> Params:
    """All parts but `ADAPTER`, which is added to the others if it is there; to compute with."""
    adapter = params.get(ADAPTER, {})
    parts = {part: x for part, x in params.items() if part != ADAPTER}
    return {part: adapted(x, adapter[part]) if part in adapter else x for part, x in parts.items()}


def merged(params: Params, adapter: Adapter) -> Params:
    """Weights with an adapter added once and for all, as host arrays.

    Products and sums are made in float64 and rounded once, so that every machine gets the same bits. `params`
    is not changed: to take an adapter away, keep it.
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
