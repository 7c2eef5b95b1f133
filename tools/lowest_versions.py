"""Print the lowest versions that pyproject.toml allows, as requirements for pip.

    pip install -r <(python tools/lowest_versions.py test)

The arguments are extras whose packages are included.
"""

import pathlib
import re
import sys
import tomllib

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def lowest(*extras: str) -> list[str]:
    """Return the requirements of the package and extras with `name>=1.2` replaced by `name==1.2`."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return [re.sub(r">=\s*", "==", requirement, count=1) for requirement in requirements]


if __name__ == "__main__":
    print("\n".join(lowest(*sys.argv[1:])))
