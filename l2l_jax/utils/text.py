"""Parsing of command-line text, and escaping of text for the console.

Importing this module does not import JAX.
"""

import ast
import contextlib
from collections.abc import Container, Iterator
from typing import Any


class Text(str):
    """A raw command-line value, which `parse_config` converts to the type of its field."""

    def elements(self) -> tuple[Any, ...]:
        """Return the raw elements of a sequence such as `(1, 2)`, `['cat', dog]` or `1,2`."""
        text = self.strip()
        parts = (part.strip() for part in _split(text[1:-1] if self.bracketed else text))
        return tuple(_element(part) for part in parts if part)

    @property
    def bracketed(self) -> bool:
        """Return whether the text is a sequence in brackets; `(odd)` is a name."""
        text = self.strip()
        if text[:1] + text[-1:] not in ("()", "[]") or len(_split(text)) > 1:
            return False
        return text[0] == "[" or text == "()" or len(_split(text[1:-1])) > 1


def _split(text: str) -> list[str]:
    """Split at commas outside quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and not parts[-1].strip():
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _element(text: str) -> Any:
    """Return a raw element without quotes; parse an element in braces as a mapping."""
    with contextlib.suppress(SyntaxError, ValueError):
        return ast.literal_eval(text) if text[0] in "\"'{" else text
    return text


def split_names(text: str, known: Container[str] = ()) -> Iterator[str]:
    """Yield the names in a list such as `a,b`, `(a, b)` or `['a,b']`; a text in `known` is not split."""
    typed = Text(text)
    names: tuple[Any, ...] = (text,)
    if text not in known and ("," in text or typed.bracketed or text[:1] in ("'", '"')):
        names = typed.elements()
        if names == (text,):  # the apostrophe or bracket is part of a name
            names = tuple(filter(None, map(str.strip, text.split(","))))
    for name in names:
        if name == text or not isinstance(name, str):
            yield text
        else:
            yield from split_names(name, known)


def printable(name: str) -> str:
    """Escape characters that a console cannot display: control characters and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def printable_lines(text: str) -> str:
    """Escape characters that a console cannot display, except line breaks."""
    return "\n".join(map(printable, text.split("\n")))
