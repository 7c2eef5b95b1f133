"""Speed of matrix products and convolutions in XLA and PyTorch: `python -m benchmarks products`.

    pip install -e '.[test-torch]'
    python -m benchmarks products

The shapes are those of a ViT-B block of `configs/mae.py` with 8 + 8 images, and of Palette's residual blocks
with 2 + 2 images of 128 pixels, in float32, channels last in XLA and first in PyTorch. All measurements are
interleaved in one process on one core, in processor time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.turns import in_turns
from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import usable_cpus

ROWS = 16 * 50
"""Tokens of a batch that the MAE encoder receives."""
DENSE = {"qkv": (768, 2304), "attention output": (768, 768), "MLP in": (768, 3072), "MLP out": (3072, 768)}
CONVOLUTIONS = ((128, 64), (64, 128), (32, 256), (16, 512))
"""Side and channels of the feature map; kernels are 3 × 3."""
KINDS = ("forward", "input's gradient", "kernel's gradient")

Case = tuple[str, Callable, Sequence[Callable], Sequence[tuple[int, ...]]]
"""Name, JAX function, PyTorch functions for `KINDS`, and shapes of input, kernel and output's gradient."""


def main(argv: Sequence[str]) -> None:
    """Time both sides, interleaved, and print a table.

    Raises:
      UserError: PyTorch is missing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks products", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each; default %(default)s")
    args = parser.parse_args(argv[1:])
    os.sched_setaffinity(0, usable_cpus()[:1])  # before XLA starts its threads
    try:
        import torch
    except ImportError as error:
        raise UserError("This benchmark needs PyTorch: pip install -e '.[test-torch]'") from error
    from jax import lax

    from l2l_jax.models.layers.convolution import convolution

    torch.set_num_threads(1)
    dense = (lambda x, k, g: x @ k, lambda x, k, g: g @ k.T, lambda x, k, g: x.T @ g)
    backward, forward = torch.nn.grad, partial(torch.nn.functional.conv2d, padding=1)
    convolutions = (
        lambda x, k, g: forward(x, k),
        lambda x, k, g: backward.conv2d_input(x.shape, k, g, padding=1),
        lambda x, k, g: backward.conv2d_weight(x, k.shape, g, padding=1),
    )
    ours = partial(
        convolution, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    products: list[Case] = [
        (name, lax.dot, dense, [(ROWS, width), (width, out), (ROWS, out)])
        for name, (width, out) in DENSE.items()
    ]
    images = {(side, width): (4, side, side, width) for side, width in CONVOLUTIONS}
    convolved: list[Case] = [
        (f"{side} × {side}, {width} channels", ours, convolutions, [image, (3, 3, width, width), image])
        for (side, width), image in images.items()
    ]
    rows: list[list[Any]] = []
    for title, cases in {"all products": products, "all convolutions": convolved}.items():
        measured = [row for case in cases for row in measure(case, args.rounds)]
        xla, peer = (sum(row[column] for row in measured) for column in (2, 3))
        rows += [*measured, [title, "", xla, peer, xla / peer]]
    header = ["", "", "XLA, ms", "PyTorch, ms", "ratio"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", "", ".1f", ".1f", ".2f")))


def measure(case: Case, rounds: int) -> list[list[Any]]:
    """Return a row of the table for each of `KINDS`."""
    import jax
    import torch

    name, ours, peers, shapes = case
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    tensors = [torch.from_numpy(_channels_first(array)) for array in arrays]
    functions = (
        lambda x, k, g: ours(x, k),
        lambda x, k, g: jax.vjp(ours, x, k)[1](g)[0],
        lambda x, k, g: jax.vjp(ours, x, k)[1](g)[1],
    )
    rows = []
    for kind, function, peer in zip(KINDS, functions, peers, strict=True):
        calls = {
            "xla": partial(jax.jit(function), *map(jax.device_put, arrays)),
            "torch": partial(peer, *tensors),
        }
        expected, computed = calls["torch"]().numpy(), _channels_first(calls["xla"]())
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        seconds = in_turns({side: partial(_timed, call) for side, call in calls.items()}, rounds)
        xla, torchs = (1000 * statistics.median(seconds[side]) for side in ("xla", "torch"))
        rows.append([name, kind, xla, torchs, xla / torchs])
    return rows


def _channels_first(array: Any) -> np.ndarray:
    """Convert images from NHWC to NCHW and kernels from HWIO to OIHW; matrices are unchanged."""
    axes = {2: (0, 1), 4: (3, 2, 0, 1) if array.shape[:2] == (3, 3) else (0, 3, 1, 2)}[array.ndim]
    return np.ascontiguousarray(np.asarray(array).transpose(axes))


def _timed(call: Callable[[], Any]) -> float:
    start = time.process_time()
    result = call()
    getattr(result, "block_until_ready", lambda: None)()
    return time.process_time() - start
