"""Unlearning without training steps by solving two linear systems, see `l2l_jax.methods.ntk.Ntk`.

R and F are the mean losses of retain and forget images, q the share of forget images, g gradients at the
original model, and G = Jᵀ H J curvatures, with the Jacobian J of the outputs and the curvature H of the loss:

    A_c w_c = −(1 − q) g_R − q g_F,   A_c = (1 − q) G_R + q G_F + λ
    A_r (w_r − w_c) = q (g_F + G_F w_c),   A_r = (1 − q) G_R + λ

The second line is A_r w_r = −(1 − q) g_R minus A_r w_c, which avoids the difference of two nearly equal
solutions: the update ascends the linearized forget loss, limited by the curvature of the retain loss.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models.base import Params
from l2l_jax.train.saliency import mean_over_batches, salient_weights
from l2l_jax.utils.batch_axis import interleave
from l2l_jax.utils.multihost import to_host
from l2l_jax.utils.progress import Progress

if TYPE_CHECKING:
    from l2l_jax.train.loop import Training

logger = logging.getLogger(__name__)
TOLERANCE = 1e-4  # relative residual of a solved system; close to the limit of float32 products
# Multiples of the scale from which a retain budget chooses
FACTORS = tuple(2.0**power for power in range(-6, 7))


def solve(training: "Training", start: Params, *, seed: int) -> Params:
    """Return the trained parts after the update of `start`; all processes compute the same."""
    one_shot, run = training.objective.one_shot, training.run
    assert one_shot is not None, "the objective has no training steps"
    start = to_host(start)
    leaves, structure = jax.tree.flatten(start)
    ends = np.cumsum([x.size for x in leaves])[:-1]

    def flat(tree: Params) -> np.ndarray:
        return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])

    def shaped(vector: np.ndarray) -> Params:
        parts = zip(np.split(vector, ends), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(x.shape).astype(x.dtype) for part, x in parts])

    free = np.ones(sum(x.size for x in leaves))
    if training.objective.saliency < 1:
        free = flat(salient_weights(training, seed=seed))
    mean = mean_over_batches(training, start, _products(training), one_shot.batches, seed=seed)
    with Progress(training.name, 2 * one_shot.iterations + 2, unit="product") as progress:

        def product(vector: np.ndarray, gradient: float, retain: float, forget: float) -> np.ndarray:
            scalars = {"gradient": gradient, "retain": retain, "forget": forget}
            argument = {name: np.float32(x) for name, x in scalars.items()}
            progress.update()
            return free * flat(mean({**argument, "direction": shaped(free * vector)}))

        counts = run.counts or dict.fromkeys(("retain", "forget"), 1)
        share = counts["forget"] / (counts["retain"] + counts["forget"])

        def solved(forget: float, right: np.ndarray, title: str) -> np.ndarray:
            def multiply(vector: np.ndarray) -> np.ndarray:
                return product(vector, 0.0, 1 - share, forget) + one_shot.damping * vector

            return _solved(multiply, right, one_shot.iterations, title)

        complete = solved(share, -product(np.zeros_like(free), 1.0, 1 - share, share), "all images")
        move = solved(0.0, product(complete, 1.0, 0.0, share), "the move")

    def moved(scale: float) -> Params:
        return jax.tree.map(np.add, start, shaped(scale * move))

    if run.budget is None:
        return moved(one_shot.scale)
    scales = [factor * one_shot.scale for factor in FACTORS]
    return run.budget.choose({scale: moved(scale) for scale in scales})


def _products(training: "Training") -> Callable[..., Params]:
    """Return `compute` for `mean_over_batches`: a weighted gradient plus curvature times a direction.

    The argument has "direction", the weights "retain" and "forget" of the sets, and the weight "gradient" of
    the gradient at the original model.
    """
    objective = training.objective
    assert objective.one_shot is not None
    outputs, losses = objective.one_shot.outputs, objective.one_shot.losses

    def compute(trained: Params, frozen: Params, inputs: Any, argument: Any) -> Params:
        rows = interleave(inputs["retain"], inputs["forget"])
        weights = jnp.stack([argument["retain"], argument["forget"]])

        def loss(predicted):
            return (losses(predicted, rows).reshape(-1, 2).mean(axis=0) * weights).sum()

        predicted, back = jax.vjp(lambda x: outputs(objective.compose(frozen, x), rows), trained)
        # The product with J is the transpose of that with Jᵀ, since convolutions have no forward-mode rule.
        _, forward = jax.vjp(lambda x: back(x)[0], jax.tree.map(jnp.zeros_like, predicted))
        slope, curved = jax.jvp(jax.grad(loss), (predicted,), forward(argument["direction"]))
        total = jax.tree.map(lambda x, y: argument["gradient"] * x + y, slope, curved)
        return back(total)[0]

    return compute


def _solved(multiply: Callable, right: np.ndarray, iterations: int, title: str) -> np.ndarray:
    """Solve a symmetric positive definite system by conjugate gradients."""
    from scipy.sparse.linalg import LinearOperator, cg  # slow to import

    operator = LinearOperator((right.size, right.size), matvec=multiply, dtype=np.float64)
    solution, unfinished = cg(operator, right, rtol=TOLERANCE, maxiter=iterations)
    if unfinished:
        message = "The system of %s is not solved to %g after %d products; increase iterations or damping."
        logger.info(message, title, TOLERANCE, iterations)
    return solution
