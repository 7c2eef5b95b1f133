"""What the user calls a class, and which class that is."""

import difflib
import functools
import importlib.resources
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from l2l_jax.errors import UserError

LISTS = importlib.resources.files("l2l_jax.data") / "class_lists"

PUBLISHED = ("imagenet_i2i", "places365_i2i")
"""Published splits: lists of classes to forget and to retain, see third_party/NOTICE.md."""

WNID = re.compile(r"n\d{8}")


def class_ids(class_names: Sequence[str], wanted: Sequence[str | int], field: str, side: str) -> list[int]:
    """The class ids of what the user wrote, each once.

    Args:
      class_names: names of the class ids.
      wanted: class names, ids, WordNet ids or names of ImageNet classes, "@FILE", published splits,
        or several of these joined by commas.
      field: where it was written, for messages.
      side: which list of a published split is meant: "forget" or "retain".

    Raises:
      UserError: an unknown class, or a name that several classes share.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    words = _imagenet_words(class_names)
    ids = [_class_id(name, numbers, words, field) for name in _expanded(wanted, numbers, field, side)]
    return list(dict.fromkeys(ids))


def _expanded(
    wanted: Sequence[str | int], known: Mapping[str, int], field: str, side: str
) -> Iterator[str | int]:
    """Names and ids, with the lists that are named in their place."""
    for name in wanted:
        if not isinstance(name, str) or name in known:
            yield name
        elif name in PUBLISHED:
            if side not in ("forget", "retain"):
                raise UserError(
                    f"{field} is {name!r}, which lists classes to forget and to retain; "
                    "its proxies are 'rest'."
                )
            yield from _lines((LISTS / f"{name}_{side}.txt").read_text("utf-8"))
        elif name.startswith("@"):
            yield from _lines(_text_of(name[1:], field))
        elif "," in name:
            parts = [part.strip() for part in name.split(",")]
            yield from _expanded([part for part in parts if part], known, field, side)
        else:
            yield name


def _class_id(name: str | int, numbers: Mapping[str, int], words: Mapping[str, list[str]], field: str) -> int:
    if str(name) in numbers:  # a class called 7 goes before the class with the id 7
        return numbers[str(name)]
    text = str(name)
    if text.isdecimal() and int(text) < len(numbers):
        return int(text)
    synsets = words.get(text.lower(), [])
    if len(synsets) > 1:
        raise UserError(
            f"{field}: several classes are called {name!r}: {', '.join(synsets)}; name one of these."
        )
    if synsets:
        return numbers[synsets[0]]
    names = [*numbers, *words]
    near = difflib.get_close_matches(text, names)
    hint = f"nearest: {', '.join(near)}" if near else _examples(list(numbers))
    raise UserError(f"{field} names the class {name!r}, which the source lacks; {hint}.")


def _imagenet_words(class_names: Sequence[str]) -> dict[str, list[str]]:
    """Lower-case words for classes that are called by WordNet ids: `{"goldfish": ["n01443537"]}`."""
    words = defaultdict(list)
    if any(WNID.fullmatch(name) for name in class_names):
        present = set(class_names)
        for wnid, synonyms in imagenet_names().items():
            if wnid in present:
                for word in synonyms:
                    words[word.lower()].append(wnid)
    return dict(words)


@functools.cache
def imagenet_names() -> dict[str, tuple[str, ...]]:
    """The words of WordNet for each of ImageNet-1K's classes, by WordNet id."""
    lines = _lines((LISTS / "imagenet_names.txt").read_text("utf-8"))
    pairs = (line.split("\t") for line in lines)
    return {wnid: tuple(words.split(", ")) for wnid, words in pairs}


def _lines(text: str) -> list[str]:
    """Lines that say something: no empty ones, and none that begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _text_of(path: str, field: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: the list of classes {path} cannot be read ({error}).") from error


def _examples(class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[:10])
    return f"its classes: {shown}" + (", …" if len(class_names) > 10 else "")
