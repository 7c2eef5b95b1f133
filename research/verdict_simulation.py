"""Simulate error rates of the audit's verdict: `python research/verdict_simulation.py`, one CPU minute.

Masked MSEs are lognormal and paired by image. The tails are the standard deviations of their logarithms for
the unlearned and the retrained model. Classifier predictions are paired in the same way. Every model is
exactly at the margin where a verdict would be false; elsewhere it knows clearly less.
"""

import argparse
import math

import numpy as np
from scipy.stats import norm
from tabulate import tabulate

from l2l_jax.audit.comparison import ALPHA, MARGINS, TESTS, Comparison, Measure
from l2l_jax.audit.verdict import decide

ATTACKS, CLASSES, PAIRED = 8, 5, 0.7
TAILS = ((0.5, 0.5), (1.0, 1.0), (0.4, 0.8), (0.8, 0.4), (0.5, 1.2))
ACCURACY = 0.3
CHUNK = 100_000
"""Numbers drawn at a time."""

AT_MARGIN: dict[Measure, float] = {"error": MARGINS["error"], "accuracy": MARGINS["accuracy"]}
INSIDE: dict[Measure, float] = {"error": -1.0, "accuracy": -0.2}

Simulated = list[list[Comparison]]
"""Comparisons of one attack by measure, for every repetition."""


def simulate(
    rng: np.random.Generator,
    images: int,
    tails: tuple[float, float],
    excess: dict[Measure, float],
    count: int,
) -> Simulated:
    """Compare `count` pairs of an unlearned and a retrained model whose true excess is given."""
    found: Simulated = []
    spread = np.array(tails)[:, None, None]
    shares = np.array([ACCURACY + excess["accuracy"], ACCURACY])[:, None, None]
    classes = np.arange(images) % CLASSES
    while len(found) < count:
        rows = min(max(1, CHUNK // images), count - len(found))
        latent = math.sqrt(1 - PAIRED) * rng.standard_normal((2, rows, images))
        latent += math.sqrt(PAIRED) * rng.standard_normal((rows, images))
        errors = np.exp(spread * latent - spread**2 / 2)
        errors[0] *= math.exp(-excess["error"])
        right = latent < norm.ppf(shares)
        by_measure = [
            _comparisons("error", (errors[0],), (errors[1],)),
            _comparisons("accuracy", (right[0], classes), (right[1], classes)),
        ]
        found += map(list, zip(*by_measure, strict=True))
    return found


def _comparisons(measure, unlearned, retrained) -> list[Comparison]:
    test, margin, images = TESTS[measure](unlearned, [retrained]), MARGINS[measure], len(unlearned[0][0])
    values = zip(test.excess, *test.p_values(margin), strict=True)
    return [Comparison(measure, e, math.nan, math.nan, margin, *ps, images) for e, *ps in values]


def error_rates(images: int, tails: tuple[float, float], repeats: int) -> dict[str, float]:
    """Return the shares of false verdicts among `repeats` simulated audits, in per cent."""
    rng = np.random.default_rng([images, *(int(100 * tail) for tail in tails)])
    inside = simulate(rng, images, tails, INSIDE, repeats)
    names = [f"attack_{number}" for number in range(ATTACKS)]
    attacks = {name: simulate(rng, images, tails, AT_MARGIN, repeats) for name in names}
    false = dict.fromkeys(("holds", "violated", "forgotten", "hidden", "not forgotten"), 0)
    for number, safe in enumerate(inside):
        at_margin = {name: found[number] for name, found in attacks.items()}
        first = at_margin[names[0]]
        false["holds"] += first[0].holds
        false["violated"] += first[0].p_violated <= ALPHA
        one = {**dict.fromkeys(names, safe), names[0]: [first[0], safe[1]]}
        false["forgotten"] += decide(safe, one).finding == "forgotten"
        false["hidden"] += decide(safe, at_margin).finding == "hidden"
        false["not forgotten"] += decide(first, {}).finding == "not forgotten"
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
