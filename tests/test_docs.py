"""Documented commands are valid, and links are not broken."""

import collections
import json
import pathlib
import re
import shlex

import pytest

from l2l_jax.__main__ import COMMANDS
from tests.utils import forking

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("research/**/*.md"),
    *ROOT.glob("*/README.md"),
]
SOURCES = [
    path for folder in ("l2l_jax", "configs", "examples", "launch") for path in ROOT.glob(f"{folder}/**/*.py")
]
COMMAND = re.compile(r"(?:python3? -m (l2l_jax[\w.]*\w)|\bl2l-jax (\w+))((?:\\\n|[^\n`\"{}])*)([`\"{}]?)")
CONFIG = "configs/digits_mae.py"


def commands():
    """Return `{module: [(place, arguments, whether it is only a mention)]}` of all pages and docstrings."""
    by_module = collections.defaultdict(list)
    for path in (*PAGES, *SOURCES):
        for match in COMMAND.finditer(path.read_text().replace("\\\\\n", "\\\n")):
            module, name, rest, end = match.groups()
            if end in ("{", "}"):  # assembled by a program
                continue
            rest = re.split(r"\s+(?:→|#|&&|>|\||\()", rest.replace("\\\n", " "))[0]
            words = [
                word.replace("--config=…", f"--config={CONFIG}").replace("=CONFIG", f"={CONFIG}")
                for word in shlex.split(rest.rstrip(" .,;:)"))
            ]
            words = [word for word in words if word not in ("…", "...")]
            if "COMMAND" in (name, *words) or "NAME" in words:
                continue
            module = module or COMMANDS[name][0]
            by_module[module].append((f"{path.relative_to(ROOT)}: {match.group(0).strip()}", words))
    return dict(by_module)


FOUND = commands()


def parsed(module, asked):
    code, output, errors = forking.run("-m", "tests.parse_commands", module, stdin=json.dumps(asked))
    assert code == 0, errors
    return json.loads(output)


@pytest.mark.parametrize("module", sorted(FOUND))
def test_documented_commands_are_valid(module):
    """A mention without flags, such as `python -m l2l_jax.weights export`, is accepted with some of them."""
    checked = [
        (place, [*words, *more])
        for place, words in FOUND[module]
        for more in (
            [[]] if any(word.startswith("--") for word in words) else [[], [f"--config={CONFIG}"], ["--help"]]
        )
    ]
    complaints = collections.defaultdict(list)
    answers = parsed(module, [words for _, words in checked])
    for (place, _), complaint in zip(checked, answers, strict=True):
        complaints[place].append(complaint)
    refused = {place: answers for place, answers in complaints.items() if all(answers)}
    assert not refused, refused


def test_incomplete_command_is_detected():
    commands_to_check = [["FILE"], ["import", "FILE"], ["import", "FILE", "--vqgam=x"]]
    wrong, right, flag = parsed("l2l_jax.weights", commands_to_check)
    assert "invalid choice: 'FILE'" in wrong and right == "" and "--vqgam=x" in flag


def test_every_program_is_documented_and_has_a_short_name():
    modules = {module for module, _ in COMMANDS.values()}
    assert set(FOUND) - {"l2l_jax", "l2l_jax.data.make_local"} == modules
    assert len(FOUND["l2l_jax.main"]) > 10


def test_links_are_not_broken():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pip_commands_do_not_name_this_package():
    """The package is not on a package index: a checkout is installed by its path."""
    pages = [p for p in (*PAGES, *SOURCES) if re.search(r"pip install[^\n&]* '?l2l_jax\b", p.read_text())]
    assert not pages
