"""Small classifiers, trained for each run, for images outside the domain of the published networks.

Inception was trained on photographs and is not informative for 16-pixel digits. The networks are from
scikit-learn.
"""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

FEATURES = 32  # width of the feature layer; much smaller than the number of images in a test set
EPOCHS = 25
SIDE = 32  # approximate side in pixels to which larger images are reduced


def reduced(images: np.ndarray) -> np.ndarray:
    """Scale uint8 images to [0, 1] and average them over squares of pixels if they are larger than `SIDE`."""
    every = max(1, images.shape[1] // SIDE)
    count, side = len(images), images.shape[1] // every
    squares = images[:, : side * every, : side * every].reshape(count, side, every, side, every, -1)
    return squares.mean(axis=(2, 4), dtype=np.float64) / 255


class SmallClassifier:
    """A `FeatureNetwork` that computes features and class probabilities of whole images.

    It is trained on uint8 images `[image, height, width, channel]` and class IDs `[image]`.
    """

    name = "small classifier"

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        # Imported late: scikit-learn takes a second to import.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self._network = MLPClassifier(
            (128, FEATURES),
            batch_size=min(128, len(images)),
            max_iter=EPOCHS,
            n_iter_no_change=EPOCHS,
            tol=0,
            learning_rate_init=2e-3,
            alpha=1e-3,
            random_state=0,
        )
        # Matrix products have few rows, for which a second thread does not pay off.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed intentionally
            self._network.fit(_flat(images), labels)
        self.weights = _trained(images, *self._network.coefs_, *self._network.intercepts_)

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Return the parameters of the layers that `outputs` uses, float32."""
        network = self._network
        weights = {f"w_{n}": x for n, x in enumerate(network.coefs_[:-1])}
        return weights | {f"b_{n}": x for n, x in enumerate(network.intercepts_[:-1])}

    @staticmethod
    def outputs(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Return the "features", computed in JAX; scikit-learn is not needed."""
        every = max(1, images.shape[1] // SIDE)
        side = images.shape[1] // every
        squares = images[:, : side * every, : side * every].astype(jnp.float32) / 255
        squares = squares.reshape(len(images), side, every, side, every, -1)
        hidden = squares.mean(axis=(2, 4)).reshape(len(images), -1)
        for number in range(len(params) // 2):
            hidden = jax.nn.relu(hidden @ params[f"w_{number}"] + params[f"b_{number}"][None])
        return {"features": hidden}

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return "features" `[image, FEATURES]` and "probabilities" `[image, class]` of uint8 images."""
        pixels = hidden = _flat(images)
        for weight, bias in zip(self._network.coefs_[:-1], self._network.intercepts_, strict=False):
            hidden = np.maximum(hidden @ weight + bias[None], 0)
        return {"features": hidden, "probabilities": self._network.predict_proba(pixels)}


class MaskedClassifier:
    """A classifier of the masked region, which visible pixels do not influence.

    It is trained on real images, uint8 `[image, height, width, channel]`, and class IDs; the mask is bool
    `[height, width]`. It is scikit-learn's SVC with a Gaussian kernel. The kernel is computed here as a
    matrix product in float32: libsvm takes over ten times as long, which was a third of an audit's time.
    """

    name = "small classifier of the masked region"

    def __init__(self, images: np.ndarray, labels: np.ndarray, mask: np.ndarray):
        from sklearn.svm import SVC  # slow to import, as above

        covered = reduced(mask[None, ..., None].astype(np.uint8))[0, ..., 0]
        self._mask = covered == covered.max()
        crops = self._crops(images)
        self._gamma = np.float32(1 / (crops.shape[1] * crops.var()))  # scikit-learn's "scale"
        self._classifier = SVC(C=10.0, kernel="precomputed").fit(self._kernel(crops, crops), labels)
        self._count, self._support = len(crops), crops[self._classifier.support_]
        self.weights = _trained(images, crops, np.asarray(labels, np.int64))

    def _crops(self, images: np.ndarray) -> np.ndarray:
        return reduced(images)[:, self._mask].reshape(len(images), -1).astype(np.float32)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return "classes", the predicted class ID of each uint8 image `[image]`."""
        kernel = np.zeros((len(images), self._count))  # only the columns of support vectors are used
        kernel[:, self._classifier.support_] = self._kernel(self._crops(images), self._support)
        return {"classes": self._classifier.predict(kernel)}

    def _kernel(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        a, b = (np.square(x).sum(axis=1) for x in (one, other))
        distances = a[:, None] + b[None] - 2 * (one @ other.T)
        return np.exp(-self._gamma * distances)


def _trained(images: np.ndarray, *arrays: np.ndarray) -> Mapping[str, Any]:
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return {"trained on": f"{len(images)} training images", "sha256": digest}


def _flat(images: np.ndarray) -> np.ndarray:
    return reduced(images).reshape(len(images), -1).astype(np.float32)  # trains twice as fast as float64
