"""Common behavior of all commands: help, configs with plugins, exit codes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from l2l_jax.__main__ import COMMANDS
from l2l_jax.cli import config as config_command
from l2l_jax.cli.common import run_program
from l2l_jax.config import parse_config
from l2l_jax.config_files import read_config
from tests.matrix import soak

PLUGIN = '''
import dataclasses
from l2l_jax.methods import Method, register

@register("brighten")
@dataclasses.dataclass(frozen=True)
class Brighten(Method):
    """Make images brighter.

    Attributes:
      strength: Added brightness.
    """

    strength: float = 0.5

    def objective(self, model):
        from l2l_jax.methods import METHODS

        return METHODS["encoder"]().objective(model)
'''


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command_without_jax(command):
    program = (
        "import runpy, sys\nsys.argv = ['l2l-jax', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('l2l_jax', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'jax' not in sys.modules or sys.argv[1] == 'prepare'"
    )
    done = subprocess.run([sys.executable, "-c", program, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout and len(done.stdout) > 200


def test_config_is_printed_completely_with_documentation(run_here):
    code, output, _ = run_here(config_command.main, "--config=digits_mae", "--config.unlearn.alpha=0.5")
    assert code == 0 and "  # Weight of the forget term; 0.25 in the paper.\n  alpha: 0.5\n" in output
    printed = yaml.safe_load(output)
    assert parse_config(printed).describe() == parse_config(read_config("digits_mae")).describe() | {
        "unlearn": printed["unlearn"]
    }


def test_user_defined_method_has_options_and_documentation(run_here, tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(PLUGIN, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--config=digits_mae:encoder", "--config.plugins=my_plugin", "--config.unlearn.method=brighten"]
    code, output, _ = run_here(config_command.main, *flags, "--config.unlearn.brighten.strength=2")
    assert code == 0 and "    # Added brightness.\n    strength: 2.0\n" in output
    code, _, errors = run_here(config_command.main, *flags, "--config.unlearn.brighten.strenth=2")
    assert code == 1 and "Did you mean config.unlearn.brighten.strength?" in errors


PLACE = "{}={}: JAX cannot start on this platform \\("
VALUE = "The environment variable {} is '{}', which JAX rejects: "


@pytest.mark.parametrize(
    ("variable", "value", "command", "message"),
    [
        ("JAX_PLATFORMS", "cuda", "config --config=digits_mae", PLACE),
        soak("JAX_PLATFORMS", "gpu", "config --config=digits_mae", PLACE),
        soak("JAX_PLATFORMS", "typo", "evaluate --images=tests --reference=tests", PLACE),
        soak("JAX_PLATFORMS", "typo", "portability record here.json", PLACE),
        soak("JAX_PLATFORM_NAME", "gpu", "run --config=digits_mae", PLACE),
        ("JAX_ENABLE_X64", "maybe", "weights inspect nowhere", VALUE),
        soak("JAX_NUM_CPU_DEVICES", "two", "run --config=digits_mae", VALUE),
    ],
)
def test_unusable_jax_platform_is_named(variable, value, command, message):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | {variable: value}
    command = [sys.executable, "-m", "l2l_jax", *command.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert re.match(f"Error: {message.format(variable, value)}", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_output_that_the_locale_cannot_encode_is_escaped():
    program = (
        "import sys\nfrom l2l_jax.cli.common import run_program\n"
        "sys.exit(run_program(lambda _: print('PSNR \\u2191 \\udcfc'), ['program']))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "PSNR \\u2191 \\udcfc\n", "")


def test_missing_home_directory_is_reported(run_here, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    code, _, errors = run_here(config_command.main, "--config=digits_mae", "--compile_cache")
    assert code == 1 and errors.startswith("Error: HOME is not set and this user has no home")


@pytest.mark.parametrize("program", ["l2l_jax", "l2l_jax.compare"])
def test_closed_output_pipe_is_not_an_error(program):
    command = f"{sys.executable} -m {program} --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


@pytest.mark.parametrize("error", [KeyError("weights"), FileNotFoundError(2, "No such file", "images/a.png")])
def test_unexpected_errors_keep_their_traceback(error):
    def program(argv):
        raise error

    with pytest.raises(type(error)):
        run_program(program, ["program"])
