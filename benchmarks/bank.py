"""Time saved per step by a token bank: `python -m benchmarks bank --config=configs/vqgan.py`.

Times the config's unlearning step without a bank ("online"), with precomputed codes of the noise
("noise_bank"), and with all codes precomputed ("token_bank"), interleaved in one run on all devices. Images
and codes are random and stored in host memory. Computing the bank is not part of a step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.step import ROUNDS
from benchmarks.turns import in_turns, table, write_report
from l2l_jax.cli.common import load_config, parse_flags
from l2l_jax.errors import UserError

BANKS = {"online": (0, 0), "noise_bank": (0, 1), "token_bank": (1, 1)}
"""Fields `token_bank` and `noise_bank` of each row; the size of a bank does not affect the step time."""
PAIRED = {"online": (0, 0), "token_bank": (1, 0)}
"""The same for models whose codes include random samples."""


def main(argv: Sequence[str]) -> None:
    """Time the three steps and print a table."""
    raw, _ = parse_flags(argv)
    from benchmarks.layouts import device_facts

    config = load_config(raw)
    seconds = measure(config, ROUNDS.value)
    facts, images = device_facts(), 2 * config.unlearn.batch_size
    print(f"{facts['count']} devices ({facts['kind']}), {images} images a step\n")
    print(table(seconds, "online"))
    write_report({"device": facts, "images": images, "seconds": seconds})


def measure(config: Any, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every step of each row, interleaved.

    Raises:
      UserError: The config's family or method does not support a bank.
    """
    from benchmarks.layouts import Run
    from l2l_jax.experiment.phase import open_phase
    from l2l_jax.train import sharding
    from l2l_jax.train.parallel import make_parallel

    if config.model.why_no_codes:
        raise UserError(f"config.model.family is {config.family!r}: {config.model.why_no_codes}.")
    runs = {}
    for name, (token_bank, noise_bank) in (PAIRED if config.model.codes_hold_draws else BANKS).items():
        cfg = dataclasses.replace(config.unlearn, token_bank=token_bank, noise_bank=noise_bank)
        phase = open_phase(dataclasses.replace(config, unlearn=cfg), "unlearn")
        mesh = sharding.make_mesh(config=config.mesh)
        sharding.check_batch_size(cfg.batch_size, cfg.batch_parts, mesh, "config.unlearn.batch_size")
        runs[name] = Run(phase, make_parallel(mesh, config.parallel))
    return in_turns({name: run.time_step for name, run in runs.items()}, rounds)
