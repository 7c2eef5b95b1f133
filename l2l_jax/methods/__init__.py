# ruff: noqa: I001  (tables list the methods in the order of their import)
"""Unlearning methods. Each is a registered class of options that builds the objective of a training step."""

from l2l_jax.methods import encoder, baselines, epsilon, whole, undo, relearn_aware, ntk  # noqa: F401  (register)
from l2l_jax.methods.base import METHODS, Method, Objective, register

__all__ = ["METHODS", "Method", "Objective", "register"]
