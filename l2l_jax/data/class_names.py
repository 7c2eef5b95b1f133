"""Conversion of user-specified class names to class ids."""

import contextlib
import difflib
import functools
import importlib.resources
import os
import pathlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from l2l_jax.data.config import REST
from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable, split_names

LISTS = importlib.resources.files("l2l_jax.data") / "class_lists"
PUBLISHED = ("imagenet_i2i", "places365_i2i")  # published forget and retain lists, see third_party/NOTICE.md
WNID, PLAIN_NUMBER = re.compile(r"n\d{8}"), re.compile(r"0|[1-9][0-9]*")


def named_classes(*given: str | int) -> tuple[str, ...]:
    """Return the classes that are named explicitly, without "rest", files and published splits."""
    names = [name for text in given for name in split_names(str(text))]
    return tuple(dict.fromkeys(x for x in names if x not in (REST, *PUBLISHED) and not x.startswith("@")))


def class_ids(class_names: Sequence[str], wanted: Sequence[str | int], field: str, side: str) -> list[int]:
    """Convert the classes specified in a field to class ids without duplicates; see `DataConfig`.

    A number is a class id only if it is a plain decimal integer and no class has that name. `side` selects
    the list of a published split: "forget" or "retain".

    Raises:
      UserError: A class is unknown, or several classes share a name.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    normal: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(class_names):
        normal[_normal(name)].append(number)
    words = defaultdict(list)  # WordNet ids by lower-case word, for classes named by WordNet ids
    for wnid in sorted(set(filter(WNID.fullmatch, class_names))):
        for word in imagenet_names().get(wnid, ()):
            words[word.lower()].append(wnid)

    def class_id(text: str) -> int:
        if len(alike := normal.get(_normal(text), [])) > 1:
            raise UserError(
                f"{field}: {len(alike)} classes are called {text!r}, in different Unicode forms: "
                f"{', '.join(ascii(class_names[i]) for i in alike)}. Give them one name, or different ones."
            )
        if alike:
            return alike[0]
        if PLAIN_NUMBER.fullmatch(text) and int(text) < len(class_names):
            for name in class_names:  # 3 is ambiguous if there is a class named 3.0
                with contextlib.suppress(ValueError):
                    if float(name) == int(text):
                        raise UserError(
                            f"{field}: no class is called {text!r}. The class with this number is "
                            f"{class_names[int(text)]!r}, but {name!r} is the same number; write the name as "
                            "it is."
                        )
            return int(text)
        synsets = words.get(text.lower(), [])
        if len(synsets) > 1:
            raise UserError(f"{field}: several classes are called {text!r}: {', '.join(synsets)}; name one.")
        if synsets:
            return numbers[synsets[0]]
        cases = {name.lower(): printable(name) for name in (*words, *numbers)}
        near = [cases[name] for name in difflib.get_close_matches(text.lower(), cases)]
        examples = ", ".join(map(printable, class_names[:10])) + (", …" if len(class_names) > 10 else "")
        hint = f"nearest: {', '.join(near)}" if near else f"its classes: {examples}"
        raise UserError(f"{field} names the class {text!r}, which the source does not have; {hint}.")

    return list(dict.fromkeys(map(class_id, _expand(wanted, numbers, field, side))))


def readable(name: str) -> str:
    """Decode a name that is not UTF-8 as Windows-1252, if possible."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("cp1252", "surrogateescape")
    return name


def _expand(wanted: Sequence[str | int], known: Mapping[str, int], field: str, side: str) -> Iterator[str]:
    """Yield names and ids, with published lists and files expanded."""
    for name in (name for text in wanted for name in split_names(str(text), known)):
        if name in known:
            yield name
        elif name in PUBLISHED:
            if side not in ("forget", "retain"):
                raise UserError(
                    f"{field} is {name!r}, which lists classes to forget and to retain; "
                    "its proxies are 'rest'."
                )
            yield from _lines((LISTS / f"{name}_{side}.txt").read_text("utf-8"))
        elif name.startswith("@"):
            try:
                yield from _lines(pathlib.Path(os.path.expanduser(name[1:])).read_text("utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{field}: the list of classes {name[1:]} cannot be read ({error})."
                ) from error
        else:
            yield name


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", readable(name))


@functools.cache
def imagenet_names() -> dict[str, tuple[str, ...]]:
    """Return the WordNet words of each ImageNet-1K class, by WordNet id."""
    pairs = (line.split("\t") for line in _lines((LISTS / "imagenet_names.txt").read_text("utf-8")))
    return {wnid: tuple(words.split(", ")) for wnid, words in pairs}


def _lines(text: str) -> list[str]:
    """Return the stripped lines that are not empty and do not begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
