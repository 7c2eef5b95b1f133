"""Exclusive ownership of a folder by one run."""

import json
import os
import threading
import time

import pytest

from l2l_jax.errors import UserError
from l2l_jax.utils import claim as claims
from l2l_jax.utils.claim import LOCK, claim
from tests.utils import forking

HOLD = """
import pathlib, sys, time
from l2l_jax.utils.claim import claim
claim(pathlib.Path(sys.argv[1]))
print("owned", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(claims, "END_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)


def test_owner_can_claim_again_and_claim_subfolders(tmp_path):
    release = claim(tmp_path)
    claim(tmp_path)()
    (tmp_path / "inside").mkdir()
    claim(tmp_path / "inside")
    assert (tmp_path / LOCK).exists() and not (tmp_path / "inside" / LOCK).exists()
    release()
    assert not (tmp_path / LOCK).exists()


def test_running_process_keeps_its_folder_and_killed_process_loses_it(tmp_path):
    other = forking.start("-c", HOLD, tmp_path)
    while not (tmp_path / LOCK).exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"still active .process {other.pid} on .*Use another --workdir"):
        claim(tmp_path)
    other.kill()
    other.communicate()
    claim(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"]["pid"] == os.getpid()


def test_process_releases_its_folder_at_exit(tmp_path):
    code, output, errors = forking.run("-c", HOLD.replace("time.sleep(60)", ""), tmp_path)
    assert (code, output, errors) == (0, "owned\n", "") and not list(tmp_path.iterdir())


def elsewhere(folder):
    process = {"host": "node7", "machine": "another", "pid": os.getpid(), "start": "1"}
    content = {"process": process, "token": "x", "since": "2026-01-01 00:00:00"}
    (folder / LOCK).write_text(json.dumps(content))


def test_lock_of_another_machine_is_valid_while_renewed(tmp_path):
    elsewhere(tmp_path)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(UserError, match="still active .process .* on node7, since 2026"):
        claim(tmp_path)
    ended.set()
    thread.join()
    started = time.monotonic()
    claim(tmp_path)
    assert time.monotonic() - started >= 1
    assert json.loads((tmp_path / LOCK).read_text())["process"]["pid"] == os.getpid()


def test_damaged_lock_is_ignored(tmp_path):
    (tmp_path / LOCK).write_text("{")
    claim(tmp_path)
