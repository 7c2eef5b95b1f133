"""Compiling quickly, for programs that run once or twice on a few numbers."""

import contextlib
import functools

import jax

from l2l_jax.objectives.task import total_loss


def _known(options):
    """The options that this version's compiler has."""
    known = {}
    for name, value in options.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            known[name] = value
    return known


QUICK = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
"""Options of XLA's CPU compiler that cost it least."""

QUICK_FLAGS = " ".join(f"--{name}={value}".lower() for name, value in QUICK.items())
"""The same for XLA_FLAGS, for other processes."""

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
"""`jax.jit` on CPU with little optimisation: a quarter of the time to compile, the same numbers but
for rounding."""


def grad_fn(task, alpha=0.0):
    """A task's loss, terms and gradient, compiled quickly."""
    loss = functools.partial(total_loss, task, alpha=alpha)
    return quick_jit(jax.value_and_grad(loss, has_aux=True))
