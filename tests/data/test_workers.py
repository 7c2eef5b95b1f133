"""Worker processes: what they load, what happens when something dies."""

import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.reading import Reader, Row, WorkerPool
from l2l_jax.data.sources import open_source
from l2l_jax.data.transforms import Transform, TransformConfig
from tests.data.pictures import Failing, Files
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


def test_a_worker_reads_prepared_data_sets_without_jax_and_tensorflow(open_pool, prepared):
    """By the shared libraries that are mapped into its memory."""
    source = open_source(SourceConfig("imagenet2012", str(prepared)), "train", 4)
    pool = open_pool(source, TRANSFORM)
    rows = [Row(0, index, 0) for index in range(3)]
    np.testing.assert_array_equal(pool.read(rows), Reader([source], [TRANSFORM], seed=0).read(rows))
    mapped = pathlib.Path(f"/proc/{pool.process_ids[0]}/maps").read_text(encoding="utf-8")
    assert "numpy" in mapped and "array_record" in mapped
    assert not any(name in mapped for name in ("jaxlib", "libtensorflow", "grain"))


def test_workers_read_what_the_reader_reads(open_pool):
    source, rows = Files(20, broken=[3]), [Row(0, i, 0) for i in range(20)]
    pool = open_pool(source, TRANSFORM, count=2)
    assert len(set(pool.process_ids)) == 2
    with ThreadPoolExecutor(2) as threads:
        found = [square for half in threads.map(pool.read, (rows[:10], rows[10:])) for square in half]
    expected = Reader([source], [TRANSFORM], seed=0).read(rows)
    bad = expected.pop(3)
    assert found.pop(3) == bad and bad.name == "image 3" and "runcated" in bad.reason
    np.testing.assert_array_equal(found, expected)


def test_what_a_worker_raises_is_raised_here_and_it_goes_on(open_pool):
    pool = open_pool(Failing(2))
    for _ in range(2):
        with pytest.raises(KeyError, match="no record 1"):
            pool.read([Row(0, 1, 0)])


def test_workers_end_when_their_parent_is_killed(tmp_path):
    program = (
        "import sys, time\n"
        "from tests.data.test_workers import *\n"
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
