"""What `python -m l2l_jax.compare` refuses before anything is trained."""

import re

import pytest

from l2l_jax.compare.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--front"], "The grid is empty"),
        (["--front", "--methods=", "--budgets=1.1"], "--methods= names no method; known: encoder, "),
        (["--front", "--methods=scrub", "--budgets=1.1"], "--methods names 'scrub'; known: encoder, "),
        (["--front", "--budgets=0.5"], "budgets are finite and at least 1"),
        (["--front", "--budgets=1.1", "--seeds=0,1.5"], "seeds are whole numbers, 0 or greater, not '1.5'"),
        (["--front", "--budgets=1.1", "--config.unlearn.adapter=lora"], "The method undo cannot be run: .*"),
        (["--sequence=5"], "name at least two different classes"),
        (["--alphas=a"], "--alphas=a: could not convert"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path, run_here):
    recipe = ["--config=configs/digits_mae.py:encoder", "--config.audit.enabled=False"]
    code, output, errors = run_here(main, *recipe, f"--workdir={tmp_path / 'run'}", *arguments)
    last = errors.strip().splitlines()[-1]
    assert code == 1 and output == "" and last.startswith("Error: ") and re.search(message, last)
    assert not (tmp_path / "run" / "front").exists()
