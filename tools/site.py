"""MkDocs hooks: the README becomes the first page, links to files outside docs/ become plain text, and lines
`<!-- output of: ARGUMENTS -->` are replaced by the output of `python -m ARGUMENTS`."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTPUT = re.compile(r"<!-- output of: (.*) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Return the page with index.md replaced by the README and without links to files outside docs/."""
    folder = (DOCS / page.file.src_uri).parent
    if page.file.src_uri == "index.md":
        markdown = (ROOT / "README.md").read_text(encoding="utf-8")
        folder = ROOT

    def output(match: re.Match) -> str:
        command = [sys.executable, "-m", *match.group(1).split()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return f"```yaml\n{done.stdout}```" if "config" in command else f"```text\n{done.stdout}```"

    def link(match: re.Match) -> str:
        text, target, anchor = match.groups()
        path = pathlib.Path(os.path.normpath(folder / target))
        if DOCS not in path.parents or not path.exists():
            return text
        relative = os.path.relpath(path, (DOCS / page.file.src_uri).parent)
        return f"[{text}]({pathlib.Path(relative).as_posix()}{anchor or ''})"

    return LINK.sub(link, OUTPUT.sub(output, markdown)).replace("](docs/", "](")
