"""What mkdocs does to the pages: the README is the first one; links that leave the site become plain text."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def on_page_markdown(markdown: str, page, **_) -> str:
    """Called by mkdocs for every page."""
    if page.file.src_uri == "index.md":
        markdown = (ROOT / "README.md").read_text().replace("](docs/", "](")
        return re.sub(r"\[([^\]]+)\]\((?!https?:|#|[\w-]+\.(?:md|png|svg))[^)]*\)", r"\1", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
