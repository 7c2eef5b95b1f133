"""Print a complete config with the documentation of its fields: `l2l-jax config --config=digits_mae`.

Every field can be set with --config.SECTION.FIELD=VALUE, even if the config file does not mention it. The
output is YAML.
"""

import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from l2l_jax.cli.common import load_config, parse_flags, run_program

if TYPE_CHECKING:
    from l2l_jax.config import Config

WIDTH = 100


def main(argv: Sequence[str]) -> None:
    """Print the config given on the command line."""
    raw, _ = parse_flags(argv)
    print("\n".join(config_lines(load_config(raw))))


def config_lines(config: "Config") -> Iterator[str]:
    """Yield the lines of a YAML file with all fields of a config."""
    from l2l_jax.config import upgrade

    docs = _docs(config) | {"unlearn": _docs(config.unlearn)}
    docs["model"] |= {name: docs[name] for name in ("family", "pretrained")}
    docs["unlearn"][config.unlearn.method] = _docs(config.unlearn.options)
    for name, value in upgrade(config.describe()).items():
        yield from _lines(name, value, docs[name], "")


def _docs(section: Any) -> dict[str, Any]:
    """Return the descriptions of all fields of a dataclass and of nested dataclasses."""
    docs: dict[str, Any] = field_docs(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            docs[field.name] = _docs(value)
        elif isinstance(value, Mapping):
            docs[field.name] = {name: _docs(inner) for name, inner in value.items()}
    return docs


def _lines(name: str, value: Any, docs: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{indent}{name}:" if value else f"{indent}{name}: {{}}"
        for field, inner in value.items():
            yield from _lines(field, inner, docs.get(field, ""), indent + "  ")
        return
    for line in textwrap.wrap(docs, WIDTH - len(indent)):
        yield f"{indent}# {line}"
    yield f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"


def field_docs(cls: type) -> dict[str, str]:
    """Return the description of each field of a dataclass, from the docstrings of the class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for entry in re.split(r"\n(?=  \S)", attributes.partition("\n\n")[0]):
            names, _, about = entry.partition(":")
            about = " ".join(about.split())
            docs |= {name: about[:1].upper() + about[1:] for name in re.split(r",\s*", names.strip())}
    return docs


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
