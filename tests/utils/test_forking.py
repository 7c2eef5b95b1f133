"""What the server forks behaves as a Python that was started."""

import os
import signal
import subprocess

import pytest

from tests.utils import forking


@pytest.mark.parametrize("devices", [1, 3])
def test_a_child_has_its_own_environment_folder_and_devices(tmp_path, devices):
    program = "import jax, os, sys; print(jax.device_count(), *sys.argv, os.getcwd(), os.environ.get('OWN'))"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "OWN": "x"}
    code, output, errors = forking.run("-c", program, "--word", env=env, cwd=tmp_path)
    assert (code, output, errors) == (0, f"{devices} -c --word {tmp_path} x\n", "")


def test_the_server_has_not_started_jax_and_has_no_threads():
    """It looks itself when it starts, and would end."""
    program = (
        "import os; from jax._src import xla_bridge; server = os.getppid()\n"
        "print(xla_bridge.backends_are_initialized(), *os.listdir(f'/proc/{server}/task'), server)"
    )
    code, output, _ = forking.run("-c", program)
    started, *tasks, server = output.split()
    assert code == 0 and started == "False" and tasks == [server]


@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('a sentence')", 1, "a sentence\n"),
        ("import atexit; atexit.register(print, 'at the end')", 0, ""),
        ("{}['key']", 1, "KeyError: 'key'\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
    ],
)
def test_it_ends_as_python_ends(program, code, error):
    found, output, errors = forking.run("-c", program)
    assert found == code and errors.endswith(error) and bool(errors) == bool(error)
    assert output == ("at the end\n" if "atexit" in program else "")


def test_a_module_is_run_as_the_program_with_its_input():
    code, output, errors = forking.run("-m", "json.tool", "--compact", stdin='{"a": 1}')
    assert (code, output, errors) == (0, '{"a":1}\n', "")


def test_it_is_waited_for_and_killed():
    process = forking.start("-c", "import time; print('begun', flush=True); time.sleep(100)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.terminate()
    assert process.communicate(timeout=20)[1] == "" and process.returncode == -signal.SIGTERM
    process.kill()  # does nothing: it has ended
    assert process.poll() == -signal.SIGTERM


def test_what_jax_has_read_before_is_not_changed():
    with pytest.raises(ValueError, match="with subprocess"):
        forking.start("-c", "", env={**os.environ, "JAX_ENABLE_X64": "1"})
