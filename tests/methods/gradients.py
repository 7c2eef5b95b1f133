"""What a step computes of a task, without its optimizer."""

import functools

import jax

from l2l_jax.methods.base import total_loss


@functools.cache
def grad_fn(task, alpha=0.0):
    """A function of trained, frozen and inputs that gives a task's loss, its terms and the gradient."""
    loss = functools.partial(total_loss, task, alpha=alpha)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))
