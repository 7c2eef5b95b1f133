r"""Our unlearning step of a MAE or of Palette beside the same one in PyTorch.

    pip install -e '.[test-torch]'
    python -m benchmarks peer --config=configs/mae.py --config.model.variant=vit_base_patch16 \
        --config.model.dtype=float32 --config.unlearn.batch_size=8

The MAE is `transformers`' ViTMAE; Palette's U-Net is written for this comparison (`peer_unet`). Each side has
a process of its own with the same number of threads, the same setting of malloc and the same weights; the two
take turns. On a GPU PyTorch compiles its networks and stores channels last; bfloat16 is autocast. Before
anything is timed, both compute the loss of one fixed batch, which must be the same number. A step draws noise
and masks, runs student and teacher, clips, and updates with AdamW (PyTorch's fused one) and the moving
average. Images are random and lie in the host's memory.
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
"""What the PyTorch side knows; named here because its own table needs PyTorch."""

AGREE_WITHIN = {"float32": 1e-3, "bfloat16": 5e-2}
"""Relative difference of the two losses beyond which the sides do not compute the same, by type."""


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
    """Raise a UserError unless the PyTorch side can do what the config asks for."""
    if config.family not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise UserError(f"config.model.family is {config.family!r}; the PyTorch side knows {known} only.")
    asked = {
        "config.unlearn.method": (config.unlearn.method, "encoder"),
        "config.unlearn.encoder.noise": (getattr(config.unlearn.options, "noise", "normal"), "normal"),
        "config.unlearn.accumulate": (config.unlearn.accumulate, 1),
    }
    if config.family == "palette":
        asked["config.model.teacher_noise"] = (config.model.teacher_noise, "hole")
    for field, (given, wanted) in asked.items():
        if given != wanted:
            raise UserError(f"{field} is {given!r}; the PyTorch side knows {wanted!r} only.")


def measure(raw: Any, *, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of every step of both sides, interleaved, after one that is not timed.

    Raises:
      UserError: There are fewer CPUs than threads of a side, a package is missing, or the losses differ.
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
    """A process that answers questions."""

    def __init__(self, name: str, raw: Any, cpus: Sequence[int]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        plain = raw.to_dict() if hasattr(raw, "to_dict") else raw
        self._process = context.Process(target=_answer, args=(theirs, name, plain, list(cpus)), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        """Return the process's answer; raise the UserError that it raised, or a RuntimeError if it ended."""
        self._connection.send(question)
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a side of the benchmark ended; its own output says why") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        self._process.kill()


def _answer(connection: Any, name: str, raw: dict[str, Any], cpus: list[int]) -> None:
    """The program of a side: `(question, *arguments)` in, answers out, until the pipe is closed."""
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
