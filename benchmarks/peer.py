r"""Speed of the unlearning step of a MAE or of Palette compared with an equivalent step in PyTorch.

    pip install -e '.[test-torch]'
    python -m benchmarks peer --config=configs/mae.py --config.model.variant=vit_base_patch16 \
        --config.model.dtype=float32 --config.unlearn.batch_size=8

The MAE is `transformers`' ViTMAE; Palette's U-Net was written for this comparison (`peer_unet`). Each side
runs in its own process with the same number of threads, malloc settings and weights; their steps are
interleaved. On a GPU, PyTorch compiles its networks and uses channels last; bfloat16 is autocast. Before
timing, the losses of both sides on one fixed batch are checked for equality. A step samples noise and masks,
runs student and teacher, clips gradients, and updates with AdamW (fused in PyTorch) and the moving average.
Images are random and stored in host memory.
"""

import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags

from benchmarks.step import ROUNDS
from benchmarks.turns import in_turns, table, write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import usable_cpus

THREADS = flags.DEFINE_integer("threads", None, "Threads of each side. Default: one per CPU.", lower_bound=1)

FAMILIES = ("mae", "palette")
"""Families that the PyTorch side supports; repeated here because its own table needs PyTorch."""

AGREE_WITHIN = {"float32": 1e-3, "bfloat16": 5e-2}
"""Maximum relative difference of the two losses by dtype."""


def main(argv: Sequence[str]) -> None:
    """Time both sides, interleaved, and print a table."""
    raw, _ = parse_flags(argv)

    config = load_config(raw)
    check(config)
    report = measure(raw, threads=THREADS.value or len(usable_cpus()), rounds=ROUNDS.value)
    print(f"{report['images']} images a step, {report['threads']} threads, {report['rounds']} rounds\n")
    print("\n".join(f"{name}: {version}" for name, version in report["versions"].items()), "\n", sep="")
    print(table(report["seconds"], "peer"))
    write_report(report)


def check(config: Any) -> None:
    """Raise a UserError unless the PyTorch side supports the config."""
    if config.family not in FAMILIES:
        names = " and ".join(FAMILIES)
        raise UserError(f"config.model.family is {config.family!r}; the PyTorch side supports only {names}.")
    fields = {
        "config.unlearn.method": (config.unlearn.method, "encoder"),
        "config.unlearn.encoder.noise": (getattr(config.unlearn.options, "noise", "normal"), "normal"),
        "config.unlearn.accumulate": (config.unlearn.accumulate, 1),
    }
    if config.family == "palette":
        fields["config.model.teacher_noise"] = (config.model.teacher_noise, "hole")
    for field, (value, supported) in fields.items():
        if value != supported:
            raise UserError(f"{field} is {value!r}; the PyTorch side supports only {supported!r}.")


def measure(raw: Any, *, threads: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of every step of both sides, interleaved, after one warm-up step.

    Raises:
      UserError: There are fewer CPUs than threads per side, a package is missing, or the losses differ.
    """
    cpus = usable_cpus()
    if threads > len(cpus):
        raise UserError(f"--threads={threads}: this process may use {len(cpus)} CPUs.")
    sides = {}
    try:
        for name in ("ours", "peer"):
            sides[name] = _Side(name, raw, cpus[:threads])
        sides["peer"].ask("weights", sides["ours"].ask("weights"))
        losses = {name: side.ask("loss") for name, side in sides.items()}
        tolerance = AGREE_WITHIN[raw["model"].get("dtype", "float32")]
        if abs(losses["ours"] - losses["peer"]) > tolerance * abs(losses["peer"]):
            raise UserError(f"The sides do not compute the same: their losses on one batch are {losses}.")
        seconds = in_turns({name: partial(side.ask, "step") for name, side in sides.items()}, rounds)
        versions = {name: side.ask("versions") for name, side in sides.items()}
        images = sides["ours"].ask("images")
    finally:
        for side in sides.values():
            side.close()
    return {
        "images": images,
        "threads": threads,
        "rounds": rounds,
        "versions": versions,
        "losses": losses,
        "seconds": seconds,
    }


class _Side:
    """A process that runs one side and answers requests."""

    def __init__(self, name: str, raw: Any, cpus: Sequence[int]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        plain = raw.to_dict() if hasattr(raw, "to_dict") else raw
        self._process = context.Process(target=_answer, args=(theirs, name, plain, list(cpus)), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        """Return the process's answer; raise its UserError, or a RuntimeError if the process has ended."""
        self._connection.send(question)
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a side of the benchmark ended; its own output says why") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        """Stop the process."""
        self._connection.close()
        self._process.join(5)
        self._process.kill()


def _answer(connection: Any, name: str, raw: dict[str, Any], cpus: list[int]) -> None:
    """Receive `(question, *arguments)` and send answers until the pipe is closed (main loop of a side)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    side: Any = None
    while True:
        try:
            question, *arguments = connection.recv()
        except EOFError:
            return
        try:
            side = side or _opened(name, raw, len(cpus))
            connection.send(getattr(side, question)(*arguments))
        except UserError as error:
            connection.send(error)


def _opened(name: str, raw: dict[str, Any], threads: int) -> Any:
    if name == "ours":
        from benchmarks.peer_sides import Ours

        return Ours(raw)
    from benchmarks.peer_torch import Peer

    return Peer(raw, threads)
