"""Simulate error rates of the audit's verdict: `python research/verdict_simulation.py`; about 5 minutes.

Masked MSEs are lognormal and paired by image. The tails are the standard deviations of their logarithms for
the unlearned and the retrained model. Answers of the classifier are paired in the same way. Every model is
exactly at the margin where a verdict would be false; elsewhere it knows clearly less.
"""

import argparse
import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from tabulate import tabulate

from l2l_jax.audit.comparison import MARGINS, Comparison, compare
from l2l_jax.audit.verdict import decide

ATTACKS, CLASSES, PAIRED = 8, 5, 0.7
TAILS = ((0.5, 0.5), (1.0, 1.0), (0.4, 0.8), (0.8, 0.4), (0.5, 1.2))
ACCURACY = 0.3


class World(NamedTuple):
    """Draws comparisons of one unlearned and one retrained model on the same test images."""

    rng: np.random.Generator
    images: int
    tails: tuple[float, float]

    def comparisons(self, excess: dict[str, float]) -> list[Comparison]:
        """Return a comparison for each measure with this true excess."""
        shared = self.rng.standard_normal(self.images)
        own = self.rng.standard_normal((2, self.images))
        latent = math.sqrt(PAIRED) * shared + math.sqrt(1 - PAIRED) * own
        spread = np.array(self.tails)[:, None]
        errors = np.exp(spread * latent - spread**2 / 2)
        errors[0] *= math.exp(-excess["error"])
        classes = np.arange(self.images) % CLASSES
        shares = np.array([ACCURACY + excess["accuracy"], ACCURACY])[:, None]
        right = latent < norm.ppf(shares)
        return [
            compare("error", (errors[0],), [(errors[1],)]),
            compare("accuracy", (right[0], classes), [(right[1], classes)]),
        ]


AT_MARGIN = {"error": MARGINS["error"], "accuracy": MARGINS["accuracy"]}
INSIDE = {"error": -1.0, "accuracy": -0.2}


def error_rates(images: int, tails: tuple[float, float], repeats: int) -> dict[str, float]:
    """Return the shares of false verdicts among `repeats` simulated audits, in per cent."""
    seed = [images, *(int(100 * tail) for tail in tails)]
    world = World(np.random.default_rng(seed), images, tails)
    false = dict.fromkeys(("holds", "violated", "forgotten", "hidden", "not forgotten"), 0)
    names = [f"attack_{number}" for number in range(ATTACKS)]
    for _ in range(repeats):
        inside = world.comparisons(INSIDE)
        at_margin = {name: world.comparisons(AT_MARGIN) for name in names}
        single = at_margin[names[0]][0]
        false["holds"] += single.holds
        false["violated"] += single.p_violated <= 0.05
        one = {**dict.fromkeys(names, inside), names[0]: [single, inside[1]]}
        false["forgotten"] += decide(inside, one).finding == "forgotten"
        false["hidden"] += decide(inside, at_margin).finding == "hidden"
        false["not forgotten"] += decide(at_margin[names[0]], {}).finding == "not forgotten"
    return {name: 100 * count / repeats for name, count in false.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    rows = [
        [images, *tails, *error_rates(images, tails, repeats).values()]
        for images in (200, 1000, 5000)
        for tails in TAILS
    ]
    headers = ["test images", "tail of unlearned", "tail of retrained"]
    headers += ["one test: falsely holds", "falsely violated"]
    headers += ["false forgotten", "false hidden", "false not forgotten"]
    print(tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
