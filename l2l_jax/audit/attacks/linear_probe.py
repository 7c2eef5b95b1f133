"""Linear probe: the class as it is read from the encoder's features, layer by layer."""

import dataclasses
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from l2l_jax.audit.attacks.base import Attack, Count, Work, register
from l2l_jax.data.records import evenly_spaced

PENALTY = 0.1  # inverse strength of the probe's L2 penalty


@register("linear_probe")
@dataclasses.dataclass(frozen=True)
class LinearProbe(Attack):
    """Read the class of forget images from the encoder's features by a linear classifier.

    With several forget classes it tells them apart; with one it tells forget from retain images. Answers are
    averaged over draws of T(x), or those of single draws would decide close comparisons. The layer is chosen
    on validation images and, by cross-validation, on the training images: by the first alone, which may be
    few, chance would choose for one model and against another.

    Attributes:
      images: Training images of the probe, at most; evenly spaced.
      draws: Corruptions T(x) of every image; the probe reads each by itself.
    """

    title = "linear probe of the encoder"
    source = "Alain & Bengio 2016, arXiv 1610.01644"
    cost = "`draws` passes of the encoder over training, validation and test images"

    images: Count = 2000
    draws: Count = 4

    def work(self, bench):
        return Work(self.draws * (self.images + bench.count("validation", "forget")) / 2)

    def run(self, variant, bench, target, seed):
        found = {name: self._features(bench, target, name) for name in ("train", "validation", "forget")}
        known, labels = found.pop("train")
        halved = np.unique(labels, return_counts=True)[1].min() > 1  # each half has all classes
        points = {}
        for layer, features in known.items():
            probe = fit_probe(features, labels)
            points[layer] = {
                name: {"right": probe(layers[layer], truth), "label": truth}
                for name, (layers, truth) in found.items()
            }
            if halved:
                right = cross_validated(features[:, :1], labels)  # one draw suffices to choose
                for key, more in (("right", right), ("label", labels)):
                    points[layer]["validation"][key] = np.append(points[layer]["validation"][key], more)
        return points

    def _features(self, bench, target, name):
        """Return features by layer and class ids: of forget images, or of forget (1) and retain ones (0)."""
        features, labels = bench.features(target.params, self._images(bench, name, "forget"), self.draws)
        if len(np.unique(bench.training.forget.labels)) > 1:
            return features, labels
        others, other_labels = bench.features(target.params, self._images(bench, name, "retain"), self.draws)
        both = {layer: np.concatenate([features[layer], others[layer]]) for layer in features}
        return both, np.repeat([True, False], [len(labels), len(other_labels)])

    def _images(self, bench, name, kind):
        if name == "train":
            source = getattr(bench.training, kind)
            return bench.shared(f"probe {kind}", lambda: bench.image_set(evenly_spaced(source, self.images)))
        if name == "validation":
            return bench.sets["validation" if kind == "forget" else "retain validation"]
        return bench.sets[kind]


def cross_validated(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how often the probe of each half of some images is right about the other half, `[image]`."""
    right = np.zeros(len(labels))
    order = np.argsort(labels, kind="stable")  # halves alike in classes
    for one, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        right[other] = fit_probe(features[one], labels[one])(features[other], labels[other])
    return right


def fit_probe(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fit a logistic regression on standardized features, in which classes count equally.

    Args:
      features: `[image, draw, feature]`.
      labels: Class ids `[image]`.

    Returns:
      A function of such features and labels: the share of draws in which it is right, float64 `[image]`.
    """
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes long to load
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def rows(x):
        return np.asarray(x, np.float64).reshape(-1, x.shape[-1])

    # This penalty lets lbfgs converge within some hundred steps on features of any layer.
    classifier = LogisticRegression(C=PENALTY, max_iter=10_000, class_weight="balanced")
    probe = make_pipeline(StandardScaler(), classifier)
    with threadpool_limits(1):  # small matrices: a second thread costs more than it saves
        probe.fit(rows(features), np.repeat(labels, features.shape[1]))

    def right(features, labels):
        answers = probe.predict(rows(features)).reshape(features.shape[:2])
        return (answers == np.asarray(labels)[:, None]).mean(axis=1)

    return right
