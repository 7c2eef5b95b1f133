"""Class prototypes: what is stored of every class, so that images can be replayed when they are gone.

After CPDM (Doan et al. 2023, arXiv 2312.06710), whose diffusion model is conditioned on one learned prototype
for each class, so that what it replays does not decay from task to task. The models here take no class, only
images: a prototype is the mean of a cluster of a class's training images, and the model is conditioned on it
by completing it, half by half (`l2l_jax.experiment.generate`).
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

PER_CLASS = 10  # prototypes of a class; fewer if it has fewer images
IMAGES = 1000  # training images of a class that are clustered, at most; evenly spaced


def make_prototypes(config: Config, source: Source) -> None:
    """Write the file `config.data.prototypes` from training images of all classes, unless it exists."""
    path = pathlib.Path(config.data.prototypes)
    if path.exists():
        return
    from sklearn.cluster import KMeans  # start-up time

    data = dataclasses.replace(config.data, retain_images="real", prototypes="")
    images, names = [], []
    for chosen in splits.training_sets(data, source, config.model.image_size):
        for label in np.unique(chosen.labels):
            members = evenly_spaced(Subset(chosen, np.flatnonzero(chosen.labels == label)), IMAGES)
            pixels = ImageSet(config, members, "prototypes").read(np.arange(len(members))).images
            with threadpool_limits(1):  # the same bits on any number of cores
                clusters = KMeans(min(PER_CLASS, len(pixels)), n_init=1, random_state=0)
                centers = clusters.fit(pixels.reshape(len(pixels), -1)).cluster_centers_
            images.append(to_uint8(centers.reshape(-1, *pixels.shape[1:]), config.model.value_range))
            names += [chosen.class_names[label]] * len(centers)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Every process writes the same file: none waits for another.
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=np.concatenate(images), labels=np.array(names))
