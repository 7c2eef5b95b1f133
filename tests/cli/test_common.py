"""Mistakes on the command line that concern the recipe as a file: one sentence each."""

import re

import pytest

from l2l_jax.main import main


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "recipe.py is not a config: it does not define get_config"),
        ("\ndef get_config(:\n", r"recipe\.py, line 2: "),
        ("def get_config():\n    return 3\n", "config must be a section with fields, not 3"),
    ],
)
def test_a_file_that_is_not_a_recipe(content, message, tmp_path, run_here):
    path = tmp_path / "recipe.py"
    path.write_text(content)
    code, output, errors = run_here(main, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    last = errors.strip().splitlines()[-1]
    assert code == 1 and output == "" and last.startswith("Error: ") and re.search(message, last)


def test_a_folder_lists_the_recipes_in_it(tmp_path, run_here):
    (tmp_path / "mine.py").write_text("")
    code, _, errors = run_here(main, f"--config={tmp_path}")
    assert code == 1 and re.search(
        r"a folder; name a file in it\. Configs in that folder: .*/mine\.py", errors
    )
