"""t-SNE (van der Maaten & Hinton 2008) of the embeddings of originals and restorations."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

MOST = 500
"""Images of a group that are shown, at most; evenly spaced."""

LEAST = 4
"""Images that it takes, in all."""

COLOURS = {"retain": "#1b6e3c", "forget": "#a3242b"}
OTHER_COLOUR = "#555555"


def project(embeddings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Places in the plane, `[image, 2]`, of groups of embeddings; all groups in one plane.

    Args:
      embeddings: `[image, feature]` by group; of larger groups `MOST` are taken.

    Raises:
      ValueError: fewer than `LEAST` images in all.
    """
    from sklearn.manifold import TSNE  # takes a second to load

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
    """Write a picture of `project`'s result, and beside it the places as JSON.

    Args:
      path: PNG file.
      groups: places by group; a group is called after its set and model, as "retain, original".
    """
    from matplotlib.figure import Figure  # takes long to load

    figure = Figure(figsize=(6.5, 5), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    for name, places in groups.items():
        of, _, model = name.partition(", ")
        marker = "o" if model == "images" else "x"
        axis.plot(*places.T, marker, markersize=4, alpha=0.6, label=name, color=COLOURS.get(of, OTHER_COLOUR))
    axis.set(xticks=[], yticks=[])
    figure.legend(loc="outside right upper")
    figure.savefig(path, metadata={"Software": None})
    lists = {name: np.round(places.astype(float), 4).tolist() for name, places in groups.items()}
    path.with_suffix(".json").write_text(json.dumps(lists) + "\n")
