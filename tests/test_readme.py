"""The examples in the README."""

import pathlib
import re
import subprocess

from tests.utils import forking

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.S).group(1)


def test_library_example_runs_unchanged():
    """Run in a new process, as pasted by a reader; the model must forget while retaining."""
    example = block("library example")
    *_, last = example.splitlines()
    at_first = f"    if step == 0:\n        {last}\n"
    code, output, errors = forking.run("-c", example.replace(last, at_first + last))
    assert code == 0, errors
    numbers = [float(x) for x in re.findall(r"\d\.\d+", output)]
    retain_before, forget_before, retain, forget = numbers
    assert retain_before == 0 and forget < 0.6 * forget_before and retain < 0.05 * forget


def test_ci_runs_the_documented_test_command():
    """The extraction in .ci/run yields the README's line."""
    extract = re.search(r"command=\$\((.*)\)\n", (ROOT / ".ci" / "run").read_text()).group(1)
    done = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == block("test command").strip()
    assert "pytest" in done.stdout and "venv" in done.stdout
