"""Speed of FID's Inception-v3 compared with PyTorch: `python -m benchmarks features`.

    pip install -e '.[test-torch]'
    python -m benchmarks features --threads=2

Both sides use the same random weights in the layout of the published file, and must compute the same features
before they are timed. PyTorch runs with channels first, as in pytorch-fid, and with channels last. All
candidates are interleaved in one process. Images have 299 × 299 pixels, so only the network is timed.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.turns import in_turns
from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import usable_cpus

AGREE_WITHIN = 1e-4
"""Maximum difference of the features, relative to the largest feature."""


def main(argv: Sequence[str]) -> None:
    """Time both sides, interleaved, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images per call; default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each; default %(default)s")
    parser.add_argument("--threads", type=int, default=len(usable_cpus()), help="default: all CPUs")
    parser.add_argument("--output", type=pathlib.Path, help="write the metrics to this file as JSON")
    args = parser.parse_args(argv[1:])
    # XLA uses as many threads as there are available CPUs.
    os.sched_setaffinity(0, usable_cpus()[: args.threads])
    images = np.random.default_rng(0).integers(0, 256, (args.batch_size, 299, 299, 3), np.uint8)
    sides = open_sides(images, args.threads)
    check(sides)
    calls = {name: functools.partial(timed, side) for name, side in sides.items()}
    seconds = in_turns(calls, args.rounds)
    rows = {name: metrics(taken, args.batch_size) for name, taken in seconds.items()}
    print(table(rows))
    if args.output:
        facts = {"batch_size": args.batch_size, "threads": args.threads, "rounds": args.rounds}
        args.output.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def open_sides(images: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Return functions that compute the features of uint8 images, by name.

    l2l_jax runs as in an evaluation, which includes scaling of pixels; PyTorch receives scaled pixels.

    Raises:
      UserError: PyTorch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("This benchmark needs PyTorch: pip install -e '.[test-torch]'") from error
    import jax

    from benchmarks.inception_torch import Inception
    from benchmarks.random_networks import inception_weights
    from l2l_jax.evals.features import inception
    from l2l_jax.evals.features.convolutions import joined
    from l2l_jax.evals.features.networks import BatchedNetwork

    state_dict, stored = inception_weights()

    def apply(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return {"features": inception.Inception().apply({"params": params}, _scaled(x))[0]}

    params = joined(stored, inception.NORM_EPSILON)
    ours = BatchedNetwork("Inception-v3", {}, params, apply, len(images))
    torch.set_num_threads(threads)

    def peer(layout: Any) -> Callable[[], np.ndarray]:
        tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
        tensors = {
            key: tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor
            for key, tensor in tensors.items()
        }
        network = Inception(tensors)
        x = torch.from_numpy(np.moveaxis(_scaled(images), -1, 1).copy()).contiguous(memory_format=layout)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return network.features(x).numpy()

        return run

    return {
        "l2l_jax": lambda: ours(images)["features"],
        "PyTorch": peer(torch.contiguous_format),
        "PyTorch, channels last": peer(torch.channels_last),
    }


def _scaled(images: Any) -> Any:
    """Scale pixels as Inception expects them."""
    return (images.astype("float32") - 128) / 128


def check(sides: Mapping[str, Callable[[], np.ndarray]]) -> None:
    """Raise a UserError unless all sides compute the same features."""
    expected, *others = (side() for side in sides.values())
    for name, computed in zip(list(sides)[1:], others, strict=True):
        difference = np.abs(computed - expected).max() / np.abs(expected).max()
        if not difference < AGREE_WITHIN:
            raise UserError(f"{name} computes other features: they differ by {difference:.1e} of the largest")


def timed(side: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall-clock and processor time of a call, in seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    side()
    return time.perf_counter() - clock, time.process_time() - processor


def metrics(taken: Sequence[tuple[float, float]], images: int) -> dict[str, float]:
    """Return images per second: the median, the fastest call, and the fastest per processor second."""
    clock, processor = zip(*taken, strict=True)
    return {
        "median": images / statistics.median(clock),
        "fastest": images / min(clock),
        "per_processor_second": images / min(processor),
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format one line per side, with the ratio of its median to that of PyTorch."""
    peer = rows["PyTorch"]["median"]
    header = ["images per second", "median", "fastest", "per processor second", "to PyTorch"]
    lines = [[name, *row.values(), row["median"] / peer] for name, row in rows.items()]
    return tabulate(lines, header, tablefmt="github", floatfmt=".2f")
