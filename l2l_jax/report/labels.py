"""Names of users' classes as text in pictures."""

import functools
import textwrap

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FALLBACKS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAGothic", "Droid Sans Fallback")
"""Fonts with East Asian glyphs, used where they are installed."""

MISSING = "▯"


def label(name: object, width: int = 16) -> str:
    """Return a name for a picture: no math, wrapped to two lines, unknown glyphs replaced.

    Args:
      name: Any text.
      width: Characters of a line.
    """
    known = set().union(*(_glyphs(family) for family in families()))
    text = "".join(c if ord(c) in known or c.isspace() else MISSING for c in str(name))
    lines = textwrap.wrap(text, width, max_lines=2, placeholder="…")
    return "\n".join(lines).replace("$", r"\$")


@functools.cache
def families() -> tuple[str, ...]:
    """Return the font families that labels are drawn with, the first one first."""
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in installed))


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont(family)).get_charmap())
