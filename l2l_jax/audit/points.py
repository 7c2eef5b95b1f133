"""Per-image measurements of attacked models, and their form in a cache."""

from collections.abc import Mapping, Sequence

import numpy as np

Measured = Mapping[str, Mapping[str, np.ndarray]]
"""By set ("retain", "forget", "validation", "members", "others"), then by name: "mse", masked MSE; "right",
whether the classifier found the class (where there is a classifier); "label", class ids; arrays `[image]`."""

Points = Mapping[str, Measured]
"""Measurements by the name of the point at which they were made: a step, a layer."""

Findings = Mapping[str, Points]
"""Points of one model by variant of an attack, the mean over seeds."""


def to_arrays(points: Points) -> dict[str, np.ndarray]:
    """Return points as one level of arrays, named point/set/name."""
    return {
        f"{point}/{name}/{key}": values
        for point, sets in points.items()
        for name, measured in sets.items()
        for key, values in measured.items()
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Points:
    """Return the points that `to_arrays` took."""
    points: dict = {}
    for path, values in arrays.items():
        point, name, key = path.split("/")
        points.setdefault(point, {}).setdefault(name, {})[key] = values
    return points


def mean(runs: Sequence[Points]) -> Points:
    """Return the mean of every measurement over runs of one attack."""
    if len(runs) == 1:
        return runs[0]
    arrays = [to_arrays(run) for run in runs]
    return from_arrays({path: np.mean([run[path] for run in arrays], axis=0) for path in arrays[0]})
