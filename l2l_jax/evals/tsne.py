"""t-SNE (van der Maaten & Hinton 2008) of the embeddings of originals and reconstructions."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from l2l_jax.utils.io import atomic_write

MOST = 500
"""Images of a group that are projected, at most; evenly spaced."""

LEAST = 4
"""Images that are needed in all."""

COLORS = {"retain": "#1b6e3c", "forget": "#a3242b"}
OTHER_COLOR = "#555555"


def project(embeddings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Project groups of embeddings `[image, feature]` into one plane, `[image, 2]`."""
    from sklearn.manifold import TSNE  # start-up time: takes a second to load

    chosen = {
        name: rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int)]
        for name, rows in embeddings.items()
    }
    rows = np.concatenate(list(chosen.values()))
    if len(rows) < LEAST:
        raise ValueError(f"t-SNE needs at least {LEAST} images, not {len(rows)}")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)
    ends = np.cumsum([len(group) for group in chosen.values()])[:-1]
    return dict(zip(chosen, np.split(places, ends), strict=True))


def save(path: pathlib.Path, groups: Mapping[str, np.ndarray]) -> None:
    """Draw the result of `project` to a PNG file, and write the places as JSON next to it.

    Groups are named after their set and model, such as "retain, original".
    """
    from matplotlib.figure import Figure  # start-up time, too

    figure = Figure(figsize=(6.5, 5), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    for name, places in groups.items():
        set_name, _, model = name.partition(", ")
        marker = "o" if model == "images" else "x"
        axis.plot(
            *places.T, marker, markersize=4, alpha=0.6, label=name, color=COLORS.get(set_name, OTHER_COLOR)
        )
    axis.set(xticks=[], yticks=[])
    figure.legend(loc="outside right upper")
    figure.savefig(path, metadata={"Software": None})
    lists = {name: np.round(places.astype(float), 4).tolist() for name, places in groups.items()}
    atomic_write(path.with_suffix(".json"), json.dumps(lists) + "\n")
