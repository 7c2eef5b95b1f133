"""Worker processes, and reads that never return, as on a dead network file system."""

import contextlib
import os
import pathlib
import signal
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from l2l_jax.data import loader, reading
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.reading import Reader, Row, WorkerPool
from l2l_jax.data.sources import open_source
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import Interrupted
from l2l_jax.utils.stopping import REQUESTS
from tests.data.pictures import Failing, Files
from tests.matrix import soak
from tests.utils import forking

TRANSFORM = Transform(TransformConfig(), 4, training=True)


@pytest.fixture
def open_pool():
    pools = []

    def open_one(source, transform=None, count=1):
        pools.append(WorkerPool(Reader([source], [transform], seed=0), count))
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.close()
        assert not any(is_running(pid) for pid in pool.process_ids)


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1]
        return state.split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_worker_reads_prepared_data_sets_without_jax_and_tensorflow(open_pool, prepared):
    """Verified by the shared libraries mapped into its memory."""
    source = open_source(SourceConfig("imagenet2012", str(prepared)), "train", 4)
    pool = open_pool(source, TRANSFORM)
    rows = [Row(0, index, 0) for index in range(3)]
    np.testing.assert_array_equal(pool.read(rows), Reader([source], [TRANSFORM], seed=0).read(rows))
    mapped = pathlib.Path(f"/proc/{pool.process_ids[0]}/maps").read_text(encoding="utf-8")
    assert "numpy" in mapped and "array_record" in mapped
    assert not any(name in mapped for name in ("jaxlib", "libtensorflow", "grain"))


def test_workers_match_the_reader(open_pool):
    source, rows = Files(20, broken=[3]), [Row(0, i, 0) for i in range(20)]
    pool = open_pool(source, TRANSFORM, count=2)
    assert len(set(pool.process_ids)) == 2
    with ThreadPoolExecutor(2) as threads:
        squares = [square for half in threads.map(pool.read, (rows[:10], rows[10:])) for square in half]
    expected = Reader([source], [TRANSFORM], seed=0).read(rows)
    bad = expected.pop(3)
    assert squares.pop(3) == bad and bad.name == "image 3" and "runcated" in bad.reason
    np.testing.assert_array_equal(squares, expected)


def test_worker_exceptions_are_raised_in_the_parent(open_pool):
    pool = open_pool(Failing(2))
    for _ in range(2):
        with pytest.raises(KeyError, match="no record 1"):
            pool.read([Row(0, 1, 0)])


def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = (
        "import sys, time\n"
        "from tests.data.test_reading import *\n"
        "pool = WorkerPool(Reader([Files(4)], [TRANSFORM], seed=0), 2)\n"
        "pool.read([Row(0, 0, 0)])\n"
        "pathlib.Path(sys.argv[1], 'workers').write_text(' '.join(map(str, pool.process_ids)) + '\\n')\n"
        "time.sleep(60)\n"
    )
    parent = forking.start("-c", program, tmp_path)
    while not (place := tmp_path / "workers").exists() or not place.read_text().endswith("\n"):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [int(pid) for pid in place.read_text().split()]
    assert len(workers) == 2 and all(is_running(pid) for pid in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


class Stalled(Files):
    """A source of files in which file 1 is a pipe."""

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


def test_stalled_file_is_named_and_a_signal_ends_the_wait(pipe, monkeypatch, caplog):
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
        pipe_end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # releases the thread
        os.close(pipe_end)
    assert f"Waiting for {pipe}" in caplog.text and "Ctrl-C" in caplog.text


@pytest.mark.parametrize("workers", [soak(0), 1])
def test_ctrl_c_ends_the_program(pipe, workers):
    program = (
        "import sys, contextlib, pathlib\n"
        "from tests.data.test_reading import batches\n"
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
