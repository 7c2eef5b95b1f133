"""A report with synthetic measurements, with errors of the size in audits of Fashion-MNIST."""

import copy
import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from l2l_jax.audit.score import UNATTACKED, Line, conclude
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.report.write import Drawings

MODELS = ("original", "unlearned", "retrained")
LINES = (
    Line(UNATTACKED, "no attack"),
    Line("retain_tuning", "retain images only, 400 steps", True),
    Line("relearning_25", "25 forget images, 50 steps", True),
    Line("linear_probe", "linear probe of the encoder"),
    Line("membership", "membership inference"),
)
KNOWN = {  # masked MSE and accuracy of forget images: original, unlearned, retrained
    UNATTACKED: ((0.031, 0.116, 0.065), (0.66, 0.07, 0.27)),
    "retain_tuning": ((0.048, 0.078, 0.080), (0.42, 0.21, 0.26)),
    "relearning_25": ((0.045, 0.060, 0.058), (0.70, 0.52, 0.54)),
}
HIDDEN = {**KNOWN, "relearning_25": ((0.045, 0.046, 0.058), (0.70, 0.69, 0.54))}


def measured(mse, accuracy, count, rng):
    """Return errors and predictions of a model, with an image effect shared by all models."""
    images = np.random.default_rng(1).standard_normal(count)
    own = 0.8 * images + 0.6 * rng.standard_normal(count)
    errors = np.exp(0.6 * own)
    order = np.argsort(np.argsort(own)) / count
    errors *= mse / errors.mean()
    return {"mse": errors, "error": errors, "right": order < accuracy, "label": np.arange(count) % 5}


def findings(knowledge, model, count=1000):
    rng = np.random.default_rng(2 + model)

    def sets(mse, accuracy):
        return {name: measured(mse, accuracy, count, rng) for name in ("validation", "forget")}

    results = {}
    for name, (errors, accuracies) in knowledge.items():
        end = sets(errors[model], accuracies[model])
        first = [values[model] for values in knowledge[UNATTACKED]]
        halfway = sets((errors[model] * first[0]) ** 0.5, (accuracies[model] + first[1]) / 2)
        results[name] = {"0": end} if name == UNATTACKED else {"25": halfway, "50": end}
    retain = measured((0.030, 0.035, 0.031)[model], 0.8, count, rng)
    results[UNATTACKED]["0"]["retain"] = retain
    probe = sets(1, (0.86, 0.83, 0.82)[model])
    results["linear_probe"] = {"norm": {n: {k: s[k] for k in ("right", "label")} for n, s in probe.items()}}
    results["membership"] = {"0": {n: {"mse": rng.gamma(2, size=100)} for n in ("members", "others")}}
    return results


FACTS = {"origin": "fashion_mae_retrained", "count": 1, "ratio": [1.02, 0.99, 1.05], "images": "validation"}
FACTS |= {"fair": True, "seeds": None}


@functools.cache
def concluded(knowledge, roles):
    """Return the audit of models with given knowledge, as items of a dictionary."""
    models = {role: [findings(dict(knowledge), MODELS.index(role))] for role in roles}
    return conclude({"retrained": [], **models}, LINES, FACTS if "retrained" in roles else None)


def report(known=KNOWN, *, retrained=True, audited=True, names=("sandal", "shirt", "sneaker", "bag", "boot")):
    metrics = {"psnr": 20.0, "mse": 0.031, "accuracy": 0.66}
    intervals = {name: [value * 0.9, value * 1.1] for name, value in metrics.items()}
    roles = MODELS if retrained else MODELS[:2]
    classes = {name: {"count": 200, "mse": 0.03, "accuracy": 0.7} for name in names}
    kept = ("T-shirt", "trousers", "pullover", "dress", "coat")
    both = {model: {"retain": metrics, "forget": metrics} for model in roles}
    return {
        **both,
        "titles": {"centre_8": "centre 8/16", "centre_8_prompt_a_bag": "centre 8/16, prompt a bag"},
        "tasks": {"centre_8": both, "centre_8_prompt_a_bag": both},
        "class_names": {"retain": list(kept), "forget": list(names)},
        "classes": {role: {"retain": {}, "forget": classes} for role in roles},
        "intervals": {model: {"retain": intervals, "forget": intervals} for model in roles},
        "real_images": {"retain": {"accuracy": 0.9}, "forget": {"accuracy": 0.93}},
        "test_images": {"retain": {"count": 1000, "skipped": {}}, "forget": {"count": 1000, "skipped": {}}},
        "bad_training_images": {},
        "not_available": {"inception_score": "it needs 10 images, and there are 8"},
        "unreliable": {},
        "original_weights": {"origin": "shipped"},
        "retain_budget": None,
        "audit": copy.deepcopy(concluded(tuple(known.items()), roles)) if audited else None,
        "seed": 0,
        "config": {"family": "mae", "data": {"forget": list(names), "retain": ["rest"]}},
        "versions": {"python": "3.11"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "durations_seconds": {"unlearn": 20.0, "audit": 90.0},
        "peak_memory_gib_after": {"unlearn": 1.0, "audit": 1.2},
        "peak_memory_gib": 1.2,
    }


class Shown(NamedTuple):
    indices: range
    images: np.ndarray
    labels: np.ndarray


def drawings(names=("sandal", "shirt", "sneaker", "bag", "boot"), folder=None):
    rng = np.random.default_rng(0)

    def images():
        return rng.random((5, 28, 28, 3))

    evaluation = SimpleNamespace(
        shown={split: Shown(range(5), images(), np.arange(5)) for split in ("retain", "forget")},
        masked=lambda split: images(),
        class_names=names,
        inpainter=SimpleNamespace(value_range=(0, 1)),
    )
    inpainted = {m: {"retain": images(), "forget": images()} for m in (*MODELS, "attacked")}
    embedded = {m: {split: rng.random((20, 8)) for split in ("retain", "forget")} for m in MODELS}
    features = EmbeddedImages(embedded, {split: np.arange(20) % 5 for split in ("retain", "forget")})
    return Drawings(evaluation, inpainted, {}, features)
