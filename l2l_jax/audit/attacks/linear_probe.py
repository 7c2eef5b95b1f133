"""Linear probe: classification of the encoder's features, layer by layer."""

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
    """A linear classifier that predicts the class of forget images from the encoder's features.

    With several forget classes, the probe distinguishes between them; with one, between forget and retain
    images. Predictions are averaged over draws of T(x), because single draws would decide close comparisons.
    The layer is chosen on validation images and, by cross-validation, on the training images: validation
    images alone may be so few that the choice is random and favors one of the models.

    Attributes:
      images: Maximum number of training images of the probe; evenly spaced.
      draws: Number of corruptions T(x) of every image; the probe classifies each separately.
    """

    title = "linear probe of the encoder"
    source = "Alain & Bengio 2016, arXiv 1610.01644"
    cost = "`draws` passes of the encoder over training, validation and test images"

    images: Count = 2000
    draws: Count = 4

    def work(self, bench):
        return Work(self.draws * (self.images + bench.count("validation", "forget")) / 2)

    def run(self, variant, bench, target, seed):
        sets = {name: self._features(bench, target, name) for name in ("train", "validation", "forget")}
        training, labels = sets.pop("train")
        halved = np.unique(labels, return_counts=True)[1].min() > 1  # each half has all classes
        points = {}
        for layer, features in training.items():
            probe = fit_probe(features, labels)
            points[layer] = {
                name: {"right": probe(layers[layer], truth), "label": truth}
                for name, (layers, truth) in sets.items()
            }
            if halved:
                right = cross_validated(features[:, :1], labels)  # one draw is enough to choose the layer
                for key, more in (("right", right), ("label", labels)):
                    points[layer]["validation"][key] = np.append(points[layer]["validation"][key], more)
        return points

    def _features(self, bench, target, name):
        """Return features by layer and class IDs.

        With one forget class, the images are forget (class 1) and retain images (class 0).
        """
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
    """Return the accuracy `[image]` of probes fitted to each half of the images on the other half."""
    right = np.zeros(len(labels))
    order = np.argsort(labels, kind="stable")  # so both halves have similar class counts
    for one, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        right[other] = fit_probe(features[one], labels[one])(features[other], labels[other])
    return right


def fit_probe(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fit a logistic regression with balanced classes on standardized features.

    Args:
      features: `[image, draw, feature]`.
      labels: Class IDs `[image]`.

    Returns:
      A function `(features, labels) -> share of draws predicted correctly`, float64 `[image]`.
    """
    from sklearn.linear_model import LogisticRegression  # scikit-learn is slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def rows(x):
        return np.asarray(x, np.float64).reshape(-1, x.shape[-1])

    # With this penalty, lbfgs converges within a few hundred steps on the features of any layer.
    classifier = LogisticRegression(C=PENALTY, max_iter=10_000, class_weight="balanced")
    probe = make_pipeline(StandardScaler(), classifier)
    with threadpool_limits(1):  # small matrices: a second thread costs more than it saves
        probe.fit(rows(features), np.repeat(labels, features.shape[1]))

    def right(features, labels):
        answers = probe.predict(rows(features)).reshape(features.shape[:2])
        return (answers == np.asarray(labels)[:, None]).mean(axis=1)

    return right
