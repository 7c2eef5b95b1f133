"""Published files of weights, and the folder where the program looks for them.

Sizes and checksums were taken from public records of people who downloaded the files; they are None where no
record was found.
"""

import dataclasses
import json
import os
import pathlib

from l2l_jax.utils.runtime import home

FOLDER_VARIABLE = "L2L_JAX_WEIGHTS"
"""Environment variable that names the folder of weights."""


def weights_folder() -> pathlib.Path:
    """Return the folder of weights: $L2L_JAX_WEIGHTS, or ~/.cache/l2l_jax/weights."""
    named = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(os.path.expanduser(named)) if named else home() / ".cache/l2l_jax/weights"


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of weights.

    `name` is that on the command line, `file` that in the folder of weights. `url` is empty where a download
    takes a browser, from `page`.
    """

    name: str
    holds: str
    file: str
    url: str
    page: str
    licence: str
    size: int | None = None
    sha256: str | None = None

    def size_in_words(self) -> str:
        """Return its size, as far as it is known."""
        return "size not known" if self.size is None else f"{self.size / 1e6:,.1f} MB"


_ROWS = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text("utf-8"))

PUBLISHED = {row["name"]: PublishedFile(**row) for row in _ROWS}
"""The files by name."""
