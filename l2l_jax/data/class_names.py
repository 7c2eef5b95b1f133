"""From what the user calls a class to its id."""

import difflib
import functools
import importlib.resources
import pathlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from l2l_jax.errors import UserError

LISTS = importlib.resources.files("l2l_jax.data") / "class_lists"

PUBLISHED = ("imagenet_i2i", "places365_i2i")
"""Published splits: lists of classes to forget and to retain, see third_party/NOTICE.md."""

WNID = re.compile(r"n\d{8}")

PLAIN_NUMBER = re.compile(r"0|[1-9][0-9]*")


def class_ids(class_names: Sequence[str], wanted: Sequence[str | int], field: str, side: str) -> list[int]:
    """Return the class ids of what the user wrote, each once.

    A number is a class id only if it is a plain decimal integer, and no class has that name.

    Args:
      class_names: Names of the class ids.
      wanted: Class names, ids, WordNet ids or names of ImageNet classes, "@FILE", published splits,
        or several of these joined by commas.
      field: Where it was written, for messages.
      side: Which list of a published split is meant: "forget" or "retain".

    Raises:
      UserError: An unknown class, or a name that several classes share.
    """
    names = _Names(class_names, field)
    return list(dict.fromkeys(names.class_id(name) for name in _expand(wanted, names.numbers, field, side)))


def readable(name: str) -> str:
    """Decode the bytes of a name that is not UTF-8 as Windows-1252, if they can be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("cp1252", "surrogateescape")
    return name


def printable(name: str) -> str:
    """Escape what a console cannot show: control characters, and bytes that are not UTF-8."""
    return name if name.isprintable() else repr(name)[1:-1]


def _expand(wanted: Sequence[str | int], known: Mapping[str, int], field: str, side: str) -> Iterator[str]:
    """Yield names and ids, with the lists that are named in their place."""
    for name in map(str, wanted):
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
            yield from _lines(_read_list(name[1:], field))
        elif "," in name:
            yield from _expand(list(filter(None, map(str.strip, name.split(",")))), known, field, side)
        else:
            yield name


class _Names:
    """Looks classes up by what they may be called."""

    def __init__(self, class_names: Sequence[str], field: str):
        self._names, self._field = class_names, field
        self.numbers = {name: number for number, name in enumerate(class_names)}
        self._normal = {_normal(name): name for name in class_names}
        self._words = _imagenet_words(class_names)

    def class_id(self, text: str) -> int:
        name = text if text in self.numbers else self._normal.get(_normal(text))
        if name is not None:
            return self.numbers[name]
        if PLAIN_NUMBER.fullmatch(text) and int(text) < len(self._names):
            return self._by_number(int(text))
        synsets = self._words.get(text.lower(), [])
        if len(synsets) > 1:
            raise UserError(
                f"{self._field}: several classes are called {text!r}: {', '.join(synsets)}; name one of "
                "these."
            )
        if synsets:
            return self.numbers[synsets[0]]
        near = difflib.get_close_matches(text, [*self.numbers, *self._words])
        examples = ", ".join(self._names[:10]) + (", …" if len(self._names) > 10 else "")
        hint = f"nearest: {', '.join(near)}" if near else f"its classes: {examples}"
        raise UserError(f"{self._field} names the class {text!r}, which the source lacks; {hint}.")

    def _by_number(self, number: int) -> int:
        """Return a class id, unless the name of another class is the same number."""
        for name in self._names:
            try:
                same = float(name) == number
            except ValueError:
                continue
            if same:
                raise UserError(
                    f"{self._field}: no class is called '{number}'. The class with this number is "
                    f"{self._names[number]!r}, but {name!r} is the same number; write the name as it is."
                )
        return number


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", readable(name))


def _imagenet_words(class_names: Sequence[str]) -> dict[str, list[str]]:
    """Return lower-case words for classes with WordNet ids as names: `{"goldfish": ["n01443537"]}`."""
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
    """Return the words of WordNet for each of ImageNet-1K's classes, by WordNet id."""
    lines = _lines((LISTS / "imagenet_names.txt").read_text("utf-8"))
    pairs = (line.split("\t") for line in lines)
    return {wnid: tuple(words.split(", ")) for wnid, words in pairs}


def _lines(text: str) -> list[str]:
    """Return the lines that are not empty and do not begin with #."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _read_list(path: str, field: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: the list of classes {path} cannot be read ({error}).") from error
