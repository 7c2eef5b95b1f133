"""Class prototypes, which are stored to replay images of a class after its images are gone.

After CPDM (Doan et al. 2023, arXiv 2312.06710), whose diffusion model is conditioned on a learned prototype
of each class, so replayed images do not degrade from task to task. The models of this package are conditioned
on images, not on classes. A prototype is therefore the mean of a cluster of a class's training images, and
the model generates images by inpainting it, one half after the other (`l2l_jax.experiment.generate`).
"""

import dataclasses
import pathlib

import numpy as np
from threadpoolctl import threadpool_limits

from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.records import Source, Subset, evenly_spaced
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.utils.io import atomic_file

PER_CLASS = 10  # number of prototypes per class; fewer if it has fewer images
IMAGES = 1000  # maximum number of training images to cluster per class; evenly spaced


def make_prototypes(config: Config, source: Source) -> None:
    """Write the file `config.data.prototypes` from training images of all classes, unless it exists."""
    path = pathlib.Path(config.data.prototypes)
    if path.exists():
        return
    from sklearn.cluster import KMeans  # slow to import

    data = dataclasses.replace(config.data, retain_images="real", prototypes="")
    images, names = [], []
    for chosen in splits.training_sets(data, source, config.model.image_size):
        for label in np.unique(chosen.labels):
            members = evenly_spaced(Subset(chosen, np.flatnonzero(chosen.labels == label)), IMAGES)
            pixels = ImageSet(config, members, "prototypes").read(np.arange(len(members))).images
            with threadpool_limits(1):  # bitwise identical on any number of cores
                clusters = KMeans(min(PER_CLASS, len(pixels)), n_init=1, random_state=0)
                centers = clusters.fit(pixels.reshape(len(pixels), -1)).cluster_centers_
            images.append(to_uint8(centers.reshape(-1, *pixels.shape[1:]), config.model.value_range))
            names += [chosen.class_names[label]] * len(centers)
    path.parent.mkdir(parents=True, exist_ok=True)
    # All processes write the same file, so they do not wait for each other.
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=np.concatenate(images), labels=np.array(names))
