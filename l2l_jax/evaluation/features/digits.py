"""A small digit classifier, trained on the spot, in place of Inception.

Inception was trained on photographs and says little about 16-pixel digits; the paper's release,
too, swaps in a scene classifier for Places-365. The networks are scikit-learn's.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

FEATURES = 32
"""Width of the layer whose activations are the features; well below the images in a test set."""

EPOCHS = 25


class DigitClassifier:
    """Features and class probabilities of whole images.

    Args:
      images: training images `[image, height, width, channel]`.
      labels: their class ids `[image]`.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._network = MLPClassifier(
            (128, FEATURES), batch_size=64, max_iter=EPOCHS, n_iter_no_change=EPOCHS, tol=0,
            learning_rate_init=2e-3, alpha=1e-3, random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
            self._network.fit(_flat(images), labels)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features `[image, FEATURES]` and probabilities `[image, class]`."""
        hidden = _flat(images)
        for weight, bias in zip(self._network.coefs_[:-1], self._network.intercepts_, strict=False):
            hidden = np.maximum(hidden @ weight + bias[None], 0)
        return hidden, self._network.predict_proba(_flat(images))


class HoleClassifier:
    """Tells the class from the hole's pixels alone: the visible ring cannot give it away.

    Args:
      images: real training images `[image, height, width, channel]`.
      labels: their class ids `[image]`.
      hole: bool `[height, width]`.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, hole: np.ndarray):
        self._hole = hole
        self._classifier = SVC(C=10.0).fit(self._crops(images), labels)

    def _crops(self, images: np.ndarray) -> np.ndarray:
        return images[:, self._hole].reshape(len(images), -1)

    def right(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether the class of each image is read rightly from its hole, bool `[image]`."""
        return self._classifier.predict(self._crops(images)) == labels


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)
