"""Reads that never return, as on a dead network file system: a pipe that nobody writes to stands for it."""

import contextlib
import os
import signal
import time
import types

import pytest

from l2l_jax.data import loader, reading
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import Interrupted
from l2l_jax.utils.stopping import REQUESTS
from tests.data.pictures import Files
from tests.matrix import soak
from tests.utils import forking


class Stalled(Files):
    """Files of which number 1 is a pipe."""

    def __init__(self, count, pipe):
        super().__init__(count)
        self._pipe = str(pipe)

    def name(self, index):
        return self._pipe if index == 1 else f"image {index}"

    def __getitem__(self, index):
        if index == 1:
            with open(self._pipe, "rb") as file:
                file.read()
        return super().__getitem__(index)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path / "pipe.jpg"


def batches(pipe, workers=0):
    transforms = {"all": Transform(TransformConfig(), 4, training=True)}
    sets = {"all": Stalled(4, pipe)}
    return TrainingBatches(
        sets, 4, value_range=(0, 1), seed=0, transforms=transforms, options=LoaderOptions(None, 0.5, workers)
    )


def test_the_console_names_the_file_and_a_signal_ends_the_wait(pipe, monkeypatch, caplog):
    monkeypatch.setattr(reading, "STALLED_AFTER", 0.2)
    monkeypatch.setattr(loader, "STOP_AFTER", 0.5)
    reading._watched_reads.cache_clear()
    request = types.SimpleNamespace(received=None)
    REQUESTS.append(request)
    try:
        with contextlib.closing(iter(batches(pipe))) as iterator:
            start = time.monotonic()
            request.received = signal.SIGTERM
            with pytest.raises(Interrupted, match="step 0"):
                next(iterator)
            while "pipe.jpg" not in caplog.text and time.monotonic() - start < 10:
                time.sleep(0.1)
    finally:
        REQUESTS.remove(request)
        pipe_end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # lets the thread go
        os.close(pipe_end)
    assert f"Waiting for {pipe}" in caplog.text and "Ctrl-C" in caplog.text


@pytest.mark.parametrize("workers", [soak(0), 1])
def test_ctrl_c_ends_the_program(pipe, workers):
    program = (
        "import sys, contextlib, pathlib\n"
        "from tests.data.test_stalled import batches\n"
        "with contextlib.closing(iter(batches(pathlib.Path(sys.argv[1]), int(sys.argv[2])))) as iterator:\n"
        "    pathlib.Path(sys.argv[1]).with_name('reading').touch()\n"
        "    next(iterator)\n"
    )
    process = forking.start("-c", program, pipe, workers)
    while not pipe.with_name("reading").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
