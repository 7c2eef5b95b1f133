"""Functions to find and read config files and to override fields from the command line.

Importing this module does not import JAX.
"""

import contextlib
import difflib
import inspect
import json
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from l2l_jax.errors import UserError
from l2l_jax.utils.text import Text

RawConfig = dict[str, Any]  # nested sections and fields of a config that has not been validated yet


def folder() -> pathlib.Path:
    """Return the folder of the configs included in the package."""
    package = pathlib.Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> tuple[str, ...]:
    """Return the names of the configs included in the package."""
    return tuple(sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__"))


def find(name: str) -> pathlib.Path:
    """Return the config file of a path, or of the name of a config included in the package."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if name in names():
        return folder() / f"{name}.py"
    if "/" not in name and path.suffix != ".py" and not path.is_dir():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"By name: {', '.join(names())}."
        raise UserError(f"--config={name}: no such config. {hint}")
    inside = path if path.is_dir() else path.parent
    available = ", ".join(sorted(str(config) for config in inside.glob("*.py"))) or "none"
    problem = "a folder; name a file in it" if path.is_dir() else "no such file"
    near = difflib.get_close_matches(path.stem, names(), n=1)
    by_name = f" The package has --config={near[0]}." if near else ""
    raise UserError(f"--config={path}: {problem}. Configs in that folder: {available}.{by_name}")


def run_name(spec: str) -> str:
    """Return the name of a run of `FILE` or `FILE:VARIANT`, the default name of its workdir."""
    name, _, variant = spec.partition(":")
    stem = pathlib.Path(name).stem
    return f"{stem}_{variant}" if variant else stem


def read_config(spec: str) -> RawConfig:
    """Read the config `FILE`, or the `NAME` of one in the package; either may be followed by `:VARIANT`.

    Raises:
      UserError: The file or the variant does not exist, or the file is not a config.
    """
    name, _, variant = spec.partition(":")
    path = find(name)
    if path.suffix != ".py":
        raise UserError(f"--config={path} is not a config: it should be a Python file, ending in .py.")
    with _explained(path):
        get_config = runpy.run_path(str(path)).get("get_config")
    if not callable(get_config):
        raise UserError(f"--config={path} is not a config: it does not define get_config().")
    if variant and not inspect.signature(get_config).parameters:
        raise UserError(f"--config={path} has no variants: leave out :{variant}.")
    with _explained(path):
        return as_raw_config(get_config(variant) if variant else get_config())


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turn exceptions raised by a config file into UserErrors that name its line."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno or 1}"
        raise UserError(f"{where}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {error}.") from error


def as_raw_config(value: Any) -> RawConfig:
    """Return the nested dicts of a ConfigDict or mapping; raise a UserError for anything else."""
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(value, Mapping):
        raise UserError(f"config must be a section with fields, not {value!r}.")
    return {
        k: as_raw_config(v) if isinstance(v, Mapping) or hasattr(v, "to_dict") else v
        for k, v in value.items()
    }


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Text]]:
    """Split `--config.SECTION.FIELD=VALUE` from the other arguments.

    The value may also be the next argument; without any, the field is set to True.
    """
    rest, overrides = [], {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(=?)(.*)", argument, re.DOTALL)
        if match is None:
            rest.append(argument)
            continue
        negated, field, equals, value = match.groups()
        if negated:
            value = "False"
        elif not equals:
            follows = arguments and not re.match(r"--?[a-zA-Z]", arguments[0])
            value = arguments.pop(0) if follows else "True"
        overrides[field] = Text(value)
    return rest, overrides


def override(raw: RawConfig, overrides: Mapping[str, Any]) -> RawConfig:
    """Return a config with changed or added fields, such as `{"unlearn.alpha": 0.5}`.

    Raises:
      UserError: A path goes through a field that is not a section.
    """
    changed = as_raw_config(raw)
    for path, value in overrides.items():
        *sections, field = path.split(".")
        parent = changed
        for depth, section in enumerate(sections, 1):
            parent = parent.setdefault(section, {})
            if not isinstance(parent, dict):
                raise UserError(f"config.{'.'.join(sections[:depth])} is a field, not a section.")
        parent[field] = value
    return changed


def stored_config(workdir: pathlib.Path) -> Mapping[str, Any] | None:
    """Return the config stored by an earlier run in a folder, or None.

    Raises:
      UserError: The stored file is damaged.
    """
    for path in (workdir / "run.json", workdir / "report" / "metrics.json"):
        if path.is_file():
            try:
                config = json.loads(path.read_text("utf-8")).get("config")
                if config is not None and not isinstance(config["model"], dict):
                    raise TypeError("config.model is not a section")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} is damaged ({error}); name the config with --config.") from error
            if config is not None:
                return config
    return None


def nearest(name: str, known: Iterable[str], where: str = "") -> str:
    """Suggest the known name closest to a mistyped one, or list all known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {where}{near[0]}?" if near else f"Known: {', '.join(known)}."
