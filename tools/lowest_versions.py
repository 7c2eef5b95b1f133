"""Prints the lowest versions that pyproject.toml allows, as requirements for pip.

    pip install -r <(python tools/lowest_versions.py test)

The arguments are extras whose packages are wanted too.
"""

import pathlib
import re
import sys
import tomllib

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def lowest(*extras: str) -> list[str]:
    """`name>=1.2` as `name==1.2`, of the dependencies and of extras; without a lower bound as it is."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [re.sub(r">=\s*", "==", requirement, count=1) for requirement in wanted]


if __name__ == "__main__":
    print("\n".join(lowest(*sys.argv[1:])))
