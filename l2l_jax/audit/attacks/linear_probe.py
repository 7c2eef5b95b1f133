"""Linear probe: what the encoder's features, layer by layer, still say of the class (Alain & Bengio 2016)."""

import numpy as np

from l2l_jax.audit.measuring import Points
from l2l_jax.evals.encoder_features import EncoderFeatures
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.models.base import Params

PROBED = 2000
"""Training images of the probe, at most; evenly spaced."""


def linear_probe(features: EncoderFeatures, params: Params, train: ImageSet, test: ImageSet) -> Points:
    """Whether the class of each forget test image is read rightly from the features, by layer.

    A logistic regression for each layer, on forget images of the training set. Cost: one pass of the encoder
    over both sets, and a few seconds.

    Args:
      features: computes them.
      params: the model.
      train, test: forget images of the training and of the test set.
    """
    known, labels = features(params, train)
    asked, truth = features(params, test)
    return {
        layer: {"forget": {"right": _right(known[layer], labels, asked[layer], truth)}} for layer in known
    }


def _right(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if len(np.unique(labels)) < 2:
        return np.ones(len(truth), bool)  # one class is always read rightly
    from sklearn.linear_model import LogisticRegression  # scikit-learn takes long to load
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    return probe.fit(known, labels).predict(asked) == truth
