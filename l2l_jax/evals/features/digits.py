"""A small classifier, trained on the spot, for images that Inception was not meant for.

Inception was trained on photographs and says little about 16-pixel digits; the paper's release,
too, swaps in a scene classifier for Places-365. The networks are scikit-learn's.
"""

import hashlib
import warnings

import numpy as np
from threadpoolctl import threadpool_limits

FEATURES = 32
"""Width of the layer whose activations are the features; well below the images in a test set."""

EPOCHS = 25

SIDE = 32
"""Side in pixels to which larger images are shrunk, about."""


def shrunk(images: np.ndarray) -> np.ndarray:
    """Means of squares of pixels of uint8 images, in [0, 1]; small images keep their size.

    Args:
      images: uint8 `[image, height, width, channel]`.
    """
    every = max(1, images.shape[1] // SIDE)
    count, side = len(images), images.shape[1] // every
    squares = images[:, : side * every, : side * every].reshape(count, side, every, side, every, -1)
    return squares.mean(axis=(2, 4), dtype=np.float64) / 255


class DigitClassifier:
    """A `FeatureNetwork`: features and class probabilities of whole images.

    Args:
      images: training images, uint8 `[image, height, width, channel]`.
      labels: their class ids `[image]`.
    """

    name = "digit classifier"

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from sklearn.exceptions import ConvergenceWarning  # scikit-learn takes long to load
        from sklearn.neural_network import MLPClassifier

        self._network = MLPClassifier(
            (128, FEATURES), batch_size=64, max_iter=EPOCHS, n_iter_no_change=EPOCHS, tol=0,
            learning_rate_init=2e-3, alpha=1e-3, random_state=0,
        )  # fmt: skip
        # Products of a few rows: a second thread costs more than it saves.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
            self._network.fit(_flat(shrunk(images)), labels)
        arrays = [*self._network.coefs_, *self._network.intercepts_]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        self.weights = {"trained on": f"{len(images)} training images", "sha256": digest}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features `[image, FEATURES]` and probabilities `[image, class]` of uint8 images."""
        pixels = _flat(shrunk(images))
        hidden = pixels
        for weight, bias in zip(self._network.coefs_[:-1], self._network.intercepts_, strict=False):
            hidden = np.maximum(hidden @ weight + bias[None], 0)
        return {"features": hidden, "probabilities": self._network.predict_proba(pixels)}


class MaskClassifier:
    """Tells the class from the hole's pixels alone: the visible ring cannot give it away.

    Args:
      images: real training images, uint8 `[image, height, width, channel]`.
      labels: their class ids `[image]`.
      mask: bool `[height, width]`.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, mask: np.ndarray):
        from sklearn.svm import SVC

        covered = shrunk(mask[None, ..., None].astype(np.uint8))[0, ..., 0]
        self._mask = covered == covered.max()
        self._classifier = SVC(C=10.0).fit(self._crops(images), labels)

    def _crops(self, images: np.ndarray) -> np.ndarray:
        return shrunk(images)[:, self._mask].reshape(len(images), -1)

    def correct(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether the class of each uint8 image is read rightly from its mask, bool `[image]`."""
        return self._classifier.predict(self._crops(images)) == labels


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)
